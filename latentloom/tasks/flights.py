"""The chunks that a worker has begun and not committed: their leases, and who waits for them."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import AbstractContextManager, ExitStack

from latentloom.errors import InterruptedRunError
from latentloom.storage.leases import Lease


class Flights:
    """Chunks in flight, by key. Threads share it."""

    def __init__(self) -> None:
        """Begin with none."""
        self._leases: dict[str, ExitStack] = {}
        self._changed = threading.Condition()
        self._abandoned = False

    @property
    def abandoned(self) -> bool:
        """Tell whether the work was given up, so that nobody should wait any more."""
        return self._abandoned

    def begin(self, key: str, lease: AbstractContextManager[Lease]) -> None:
        """Take a chunk's lease, and hold it until the chunk lands."""
        held = ExitStack()
        held.enter_context(lease)
        with self._changed:
            self._leases[key] = held

    def land(self, key: str) -> None:
        """Give back the lease of a chunk that has a record now; who waits for it goes on."""
        self._leases[key].close()
        with self._changed:
            del self._leases[key]
            self._changed.notify_all()

    def wait_for(self, keys: Collection[str]) -> None:
        """Wait until none of these chunks is in flight.

        Raises:
            InterruptedRunError: If the work is given up meanwhile.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._leases.keys().isdisjoint(keys))
            if self._abandoned:
                raise InterruptedRunError("the chunk that is waited for was given up")

    def abandon(self) -> None:
        """Give up, and wake who waits; leases are kept until ``release``."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def release(self) -> None:
        """Give back every lease that is left."""
        while self._leases:
            self._leases.popitem()[1].close()
