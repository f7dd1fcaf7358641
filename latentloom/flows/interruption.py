"""Ctrl-C twice: the first one lets the chunk at hand finish, the second one stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from latentloom.flows.environment import environment
from latentloom.flows.scratch import scratch_folder
from latentloom.tasks.stop import STOP_FILE

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_INTERRUPTED = 130
_active: list["_Interruption"] = []


class _Interruption:
    """Counts signals: the first makes the stop file, the second ends the process."""

    def __init__(self, stop_file: Path, notice: Callable[[], None] | None) -> None:
        self.stop_file = stop_file
        self.notice = notice

    def listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        if self.stop_file.exists():
            # Nothing to tidy: every record is durable, and whoever we started dies with us.
            os._exit(_INTERRUPTED)
        with suppress(OSError):
            self.stop_file.touch()
        if self.notice is not None:
            self.notice()


@contextmanager
def interruption(notice: Callable[[], None] | None = None) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a stop file, the second into exit code 130.

    Outside the main thread, where no signal arrives, it only provides the stop file.

    Args:
        notice: called at the first signal, to tell the user what happens now.
    """
    with scratch_folder() as folder:
        stop_file = folder / "stop"
        with environment({STOP_FILE: str(stop_file)}):
            if not _in_main_thread():
                yield
                return
            before = [signal.getsignal(number) for number in _SIGNALS]
            _active.append(_Interruption(stop_file, notice))
            _active[-1].listen()
            try:
                yield
            finally:
                _active.pop()
                for number, handler in zip(_SIGNALS, before, strict=True):
                    signal.signal(number, handler)


def listen_again() -> None:
    """Take SIGTERM back from Prefect, which claims it whenever a flow starts."""
    if _active and _in_main_thread():
        _active[-1].listen()


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
