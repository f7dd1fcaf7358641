"""Tell people how a run or a batch ended: by a webhook, or by any service that apprise knows.

Addresses hold secrets. They come from the command line, the environment or the config file of the process
that does the work; nothing shows them, stores them, or sends them to a Prefect server.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from latentloom.errors import HeldError, InterruptedRunError, UsageError
from latentloom.flows.environment import bypass_proxies_for_loopback, environment
from latentloom.schemas.run import RunState
from latentloom.schemas.settings import NOTIFY, NOTIFY_ON, read_settings

if TYPE_CHECKING:
    from apprise import NotifyBase

_TIMEOUT_SECONDS = 10.0
_SHOWN = 10  # failures in one message
_TALKATIVE = ("apprise", "httpx", "httpcore", "urllib3")  # they log addresses
_log = logging.getLogger("latentloom")


@dataclass
class Ending:
    """How something ended, as it becomes known."""

    kind: Literal["run", "batch"]
    name: str
    """Id of the run, or name of the batch."""
    subject: str
    """What people call it."""
    resume: str
    """The command that continues it."""
    state: Literal["finished", "failed"] = "finished"
    summary: str = ""
    failures: Sequence[str] = ()
    seconds: float = 0.0
    silent: bool = False
    """Whether there is nothing to tell."""
    begun: float = field(default_factory=time.monotonic, repr=False)

    def tell_of(self, state: RunState) -> None:
        """Fill in what a finished run did."""
        computed = sum(stage.computed for stage in state.stages)
        reused = sum(stage.reused for stage in state.stages)
        self.summary = f"{computed} chunks computed, {reused} reused"
        if state.output is not None:
            self.summary += f": {state.output}"

    @property
    def title(self) -> str:
        """Return one line."""
        return f"latentloom: {self.subject} {self.state}"

    @property
    def text(self) -> str:
        """Return what is to be known, in a few lines."""
        lines = [f"{self.kind} {self.name} {self.state} after {self.seconds:.1f} s", self.summary]
        lines += self.failures[:_SHOWN]
        if len(self.failures) > _SHOWN:
            lines.append(f"and {len(self.failures) - _SHOWN} more")
        if self.state == "failed":
            lines += ["Finished chunks are kept. Continue with:", f"    {self.resume}"]
        return "\n".join(line for line in lines if line)

    def facts(self) -> dict[str, Any]:
        """Return it as plain data; ``text`` is what chat services show."""
        return {
            "title": self.title,
            "text": f"{self.title}\n{self.text}",
            "kind": self.kind,
            "name": self.name,
            "subject": self.subject,
            "state": self.state,
            "seconds": round(self.seconds, 3),
            "summary": self.summary,
            "failures": list(self.failures),
            "resume": self.resume,
        }


def ending_of_run(state: RunState, store: str) -> Ending:
    """Begin the story of a run."""
    subject = f"{os.path.basename(state.source)} / {state.name}"
    return Ending("run", state.run, subject, resume_command(state.run, store))


def ending_of_batch(batch: str, store: str) -> Ending:
    """Begin the story of a batch file."""
    path, name = Path(batch).resolve(), Path(batch).stem
    resume = f"latentloom batch {shlex.quote(str(path))} --store {shlex.quote(store)}"
    return Ending("batch", name, f"batch {name}", resume)


def resume_command(run: str, store: str) -> str:
    """Return what to type to continue a run."""
    return f"latentloom resume {run} --store {shlex.quote(store)}"


@contextmanager
def announced(ending: Ending) -> Iterator[Ending]:
    """Notify whoever asked for it once the block has ended, unless its user stopped it.

    A notification that cannot be sent is a warning in the log, never an error.

    Args:
        ending: Its state, summary and failures may be filled in by the block.
    """
    try:
        yield ending
    except (InterruptedRunError, HeldError):
        raise
    except Exception as error:
        ending.state, ending.summary = "failed", str(error) or type(error).__name__
        _tell(ending)
        raise
    _tell(ending)


@contextmanager
def notifying(addresses: Sequence[str], on: str | None) -> Iterator[None]:
    """Check whom this process is to notify, with what the command line says above the other settings.

    Args:
        addresses: Instead of the environment's and the config file's, if there are any.
        on: ``always`` or ``failure``; likewise.

    Raises:
        UsageError: With the place of each wrong address, and never more of it than its scheme.
    """
    given = {NOTIFY: " ".join(addresses)} if addresses else {}
    with environment(given | ({NOTIFY_ON: on} if on else {})):
        _check(_asked_for()[0])
        yield


def _check(addresses: Sequence[str]) -> None:
    with _unheard():
        wrong = [
            f"address {number} to notify ({_scheme(address)}) is neither http:// or https:// nor a URL"
            " that apprise knows; see https://github.com/caronc/apprise"
            for number, address in enumerate(addresses, start=1)
            if not _is_web(address) and _service(address) is None
        ]
    if wrong:
        raise UsageError("\n".join(wrong))


def _tell(ending: Ending) -> None:
    ending.seconds = time.monotonic() - ending.begun
    try:
        addresses, only_failures = _asked_for()
    except UsageError as error:
        _log.warning("nobody is notified: %s", error)
        return
    if ending.silent or (only_failures and ending.state != "failed"):
        return
    bypass_proxies_for_loopback()
    for number, address in enumerate(addresses, start=1):
        with _unheard():
            fault = _send(address, ending)
        if fault:
            scheme = _scheme(address)
            _log.warning("notification %d (%s) was not sent: %s", number, scheme, fault)


def _asked_for() -> tuple[Sequence[str], bool]:
    """Return whom to notify, and whether only of failures: the environment's word, or the config file's."""
    settings = read_settings()
    addresses = [address.get_secret_value() for address in settings.notify]
    if NOTIFY in os.environ:
        addresses = os.environ[NOTIFY].split()
    on = os.environ.get(NOTIFY_ON, settings.notify_on)
    if on not in ("always", "failure"):
        raise UsageError(f"{NOTIFY_ON}: {on!r} is neither always nor failure")
    return addresses, on == "failure"


def _send(address: str, ending: Ending) -> str | None:
    """Send to one address; return what went wrong, with nothing of the address in it."""
    try:
        service = _service(address)
        if service is not None:
            return None if _notify(service, ending) else "the service did not take it"
        if _is_web(address):
            return _post(address, ending)
    except Exception as error:
        return type(error).__name__
    return "no address that apprise knows"


def _service(address: str) -> NotifyBase | None:
    """Return the service that apprise takes an address for, those of chat services too."""
    import apprise

    return apprise.Apprise.instantiate(address)


def _notify(service: NotifyBase, ending: Ending) -> bool:
    import apprise

    kinds = {"finished": apprise.NotifyType.SUCCESS, "failed": apprise.NotifyType.FAILURE}
    sender = apprise.Apprise()
    sender.add(service)
    return bool(
        sender.notify(title=ending.title, body=ending.text, notify_type=kinds[ending.state])
    )


def _post(address: str, ending: Ending) -> str | None:
    import httpx

    answer = httpx.post(address, json=ending.facts(), timeout=_TIMEOUT_SECONDS)
    return None if answer.is_success else f"HTTP status {answer.status_code}"


def _is_web(address: str) -> bool:
    return _scheme(address) in ("http://", "https://")


def _scheme(address: str) -> str:
    scheme, separator, _ = address.partition("://")
    return f"{scheme.lower()}://" if separator else "no scheme"


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep the libraries that send from writing addresses into logs."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # apprise loads what Python deprecates
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
