"""Leases: who works on what just now. They avoid waste; correctness never depends on one.

A lease names its holder's host, boot, process and start time. A holder that is dead on this host
loses it at once, any other after 30 s without renewal, so a killed run leaves nothing to unlock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from latentloom.errors import HeldError, InterruptedRunError, LatentloomError
from latentloom.storage import layout
from latentloom.storage.backends import delete_if_same, explained
from latentloom.storage.store import Store

LEASE_SECONDS = 30.0
RENEWAL_SECONDS = 10.0

_log = logging.getLogger(__name__)

# Each round means that another process took the lease between two of our operations.
_TAKE_ROUNDS = 10


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease, recognisable after its death."""

    host: str
    boot: str
    """Boot id and pid namespace: pids can be compared where these are equal."""
    pid: int
    started: str

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process."""
        return cls(socket.gethostname(), _boot(), os.getpid(), _started(os.getpid()) or "")

    def is_dead(self) -> bool:
        """Say whether the holder is known to be dead; False also where nothing is known."""
        here = (socket.gethostname(), _boot())
        return here == (self.host, self.boot) and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Lease:
    """A lease held by this process and renewed by a daemon thread until ``release``."""

    def __init__(self, store: Store, name: str, content: bytes) -> None:
        """Take over a lease file that ``try_lease`` has just made."""
        self.name = name
        self._store = store
        self._path = layout.lease_path(name)
        self._content = content
        self._released = threading.Event()
        self._lost = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name=f"lease {name}", daemon=True)
        self._renewal.start()

    @property
    def lost(self) -> bool:
        """Whether another process has taken the lease; harmless but for work done twice."""
        return self._lost.is_set()

    def release(self) -> None:
        """Give the lease back; never raises, since a lease that stays expires."""
        self._released.set()
        self._renewal.join()
        try:
            delete_if_same(self._store.backend, self._path, self._content)
        except (OSError, LatentloomError) as error:
            _log.warning("lease %s was not given back (%s); it expires", self.name, error)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _renew(self) -> None:
        backend = self._store.backend
        while not self._released.wait(RENEWAL_SECONDS):
            try:
                if backend.read(self._path) != self._content:
                    self._lost.set()
                    return
                backend.write(self._path, self._content, durable=False)
            except FileNotFoundError:
                self._lost.set()
                return
            except OSError as error:
                _log.warning("lease %s was not renewed (%s); trying again", self.name, error)


def try_lease(store: Store, name: str) -> Lease | None:
    """Take a lease if nobody alive holds it.

    Args:
        store: Where the lease lies.
        name: What the lease is for; any text.

    Returns:
        The lease, or None if it is held.
    """
    content = _content(name)
    path = layout.lease_path(name)
    with explained(store.uri, "write"):
        for _ in range(_TAKE_ROUNDS):
            try:
                store.backend.create(path, content, durable=False)
            except FileExistsError:
                found = _read(store, path)
                if found != content:
                    if found is not None and not _has_expired(store, path, found):
                        return None
                    if found is not None:
                        delete_if_same(store.backend, path, found)
                    continue
            return Lease(store, name, content)
    return None


@contextlib.contextmanager
def lease(
    store: Store,
    name: str,
    *,
    wait: bool = True,
    poll_seconds: float = 0.2,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Lease]:
    """Hold a lease for the time of a ``with`` block.

    Args:
        store: Where the lease lies.
        name: What the lease is for; any text.
        wait: Whether to wait for another holder.
        poll_seconds: How often to look while waiting.
        stop: Asked while waiting; True ends it.

    Raises:
        HeldError: Another process holds it and ``wait`` is False.
        InterruptedRunError: ``stop`` said so.
    """
    while (taken := try_lease(store, name)) is None:
        if not wait:
            raise HeldError(
                f"{name} in store {store.uri} is held by {holder(store, name) or 'another run'}; "
                "wait for it, or run without --no-wait"
            )
        if stop is not None and stop():
            raise InterruptedRunError(f"stopped while waiting for {name}; the same command resumes")
        time.sleep(poll_seconds)
    with taken:
        yield taken


def holder(store: Store, name: str) -> Holder | None:
    """Say who holds a lease, or None if nobody does or it cannot be read."""
    with explained(store.uri, "read"):
        found = _read(store, layout.lease_path(name))
    return None if found is None else _holder(found)


def is_held(store: Store, name: str) -> bool:
    """Say whether a process that may be alive holds a lease."""
    path = layout.lease_path(name)
    with explained(store.uri, "read"):
        found = _read(store, path)
        return found is not None and not _has_expired(store, path, found)


def expired_leases(store: Store) -> list[str]:
    """List the paths of leases whose holders are gone."""
    with explained(store.uri, "list"):
        paths = [f"{layout.LEASES}/{name}" for name in store.backend.names(layout.LEASES)]
        found = [(path, _read(store, path)) for path in paths]
        return [
            path
            for path, content in found
            if content is not None and _has_expired(store, path, content)
        ]


def _content(name: str) -> bytes:
    # The token tells two leases of one process apart, and this one from its successor.
    fields = {**asdict(Holder.this_process()), "name": name, "token": secrets.token_hex(8)}
    return json.dumps(fields, sort_keys=True).encode() + b"\n"


def _read(store: Store, path: str) -> bytes | None:
    try:
        return store.backend.read(path)
    except FileNotFoundError:
        return None


def _has_expired(store: Store, path: str, content: bytes) -> bool:
    found = _holder(content)
    if found is not None and found.is_dead():
        return True
    try:
        return time.time() - store.backend.info(path).modified > LEASE_SECONDS
    except FileNotFoundError:
        return True


def _holder(content: bytes) -> Holder | None:
    try:
        fields = json.loads(content)
        return Holder(fields["host"], fields["boot"], int(fields["pid"]), fields["started"])
    except (ValueError, KeyError, TypeError):
        return None  # damaged: expires by its age


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        # Without /proc nobody is known to be dead, and leases expire by age only.
        return f"unknown {secrets.token_hex(8)}"


def _started(pid: int) -> str | None:
    """Start time of a living process in clock ticks since boot; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # Field 22 of proc(5); the state, field 3, follows the name. Zombies hold nothing.
    state, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
