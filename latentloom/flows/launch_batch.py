"""Work on a batch here and wait for it: start an engine, follow the videos, say how it ended."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latentloom.errors import HeldError, LatentloomError
from latentloom.flows import engine
from latentloom.flows.archive import Scan
from latentloom.flows.progress import clock
from latentloom.storage.store import Store

Write = Callable[[str], object]


def launch_batch(
    store: Store,
    path: Path,
    scanned: Scan,
    *,
    wait: bool,
    roots: Sequence[Path],
    defaults: Mapping[str, Mapping[str, Any]],
    write: Write,
) -> tuple[dict[str, Any], LatentloomError | None]:
    """Edit what a scan found to do, as a flow on an engine of this process.

    Args:
        store: Where records lie.
        path: The batch file.
        scanned: What a scan of it found.
        wait: Whether to wait for another process that works on the batch.
        roots: More folders that the batch may point into.
        defaults: Recipe fields for those that nothing else sets.
        write: Shows a message to the user.

    Returns:
        Counts and failures as plain data, and the error that ended it or that failures amount to.

    Raises:
        HeldError: If another process works on the batch and ``wait`` is off.
        InterruptedRunError: If the user stopped it.
    """
    engine.quiet_environment()
    with (
        engine.quiet_libraries(),
        engine.session(
            notice=partial(_say_stopping, write),
            while_starting=_import_flow,
        ),
    ):
        from latentloom.flows.batch import batch_error, edit_archive, told

        begun = time.monotonic()

        def show(tally: Any) -> None:
            last, ended = tally.last, tally.edited + tally.failed
            spent = (time.monotonic() - begun) / ended
            left = f", {clock(spent * tally.left)} left" if tally.left else ""
            how = f"{last.seconds:.1f} s" if last.state == "done" else f"{last.state}: {last.error}"
            write(f"{ended}/{ended + tally.left} {last.uri} {how}{left}")
            for warning in last.warnings:
                write(f"warning: {last.uri}: {warning}")

        with told(show):
            state: Any = edit_archive(
                batch=str(path),
                store=store.uri,
                wait=wait,
                roots=[str(root) for root in roots],
                defaults={key: dict(value) for key, value in defaults.items()},
                return_state=True,
            )
        facts = state.result(raise_on_failure=False)
    if isinstance(facts, LatentloomError):
        raise facts
    if isinstance(facts, BaseException):
        raise LatentloomError(f"{type(facts).__name__}: {facts}") from facts
    if facts is None:
        raise HeldError(f"batch {scanned.batch.name} is being worked on; leave out --no-wait")
    return facts, batch_error(facts)


def _import_flow() -> None:
    importlib.import_module("latentloom.flows.batch")


def _say_stopping(write: Write) -> None:
    write("stopping after the chunks at hand; press Ctrl-C again to stop now")
