"""Tell a task that its run should stop after the chunk at hand.

A file, not a signal: it reaches every worker process of a machine, and nothing is cut off half way. Workers
on other machines are told of the run by its id.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

STOP_FILE = "LATENTLOOM_STOP_FILE"
_stopped: set[str] = set()
_run: ContextVar[str] = ContextVar("run", default="")


def stop_requested() -> bool:
    """Look whether the run has been asked to stop; call it between chunks."""
    path = os.environ.get(STOP_FILE)
    return _run.get() in _stopped or (bool(path) and Path(str(path)).exists())


@contextmanager
def working_for(run: str) -> Iterator[None]:
    """Name the run that the block works for, so that it can be stopped alone."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def stop_run(run: str) -> None:
    """Ask the tasks of a run that this process works on to stop."""
    _stopped.add(run)


def forget_stop(run: str) -> None:
    """Let this process work for a run that was stopped before."""
    _stopped.discard(run)
