"""Events on their way to the store: history, not proof."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass, field

from pydantic import JsonValue

from latentloom.schemas.event import Event, EventKind
from latentloom.storage.store import Store

FLUSH_SECONDS = 2.0


@dataclass
class Journal:
    """Events of one writer, flushed now and then. Threads share it."""

    store: Store
    run_id: str
    _pending: list[Event] = field(default_factory=list)
    _flushed: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(
        self,
        kind: EventKind,
        stage: str,
        key: str,
        index: int,
        *,
        seconds: float | None = None,
        detail: dict[str, JsonValue] | None = None,
    ) -> None:
        """Keep one event, and write all that are kept every other second."""
        event = Event(
            time=time.time(),
            kind=kind,
            run=self.run_id,
            stage=stage,
            key=key,
            index=index,
            seconds=seconds,
            worker=worker_name(),
            detail=detail or {},
        )
        with self._lock:
            self._pending.append(event)
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._flush()

    def flush(self) -> None:
        """Write what is kept."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self.store.append_events(self.run_id, worker_name(), self._pending)
        self._pending, self._flushed = [], time.monotonic()


def worker_name() -> str:
    """Name this process in events."""
    return f"{socket.gethostname()}-{os.getpid()}"
