"""Backends that fail on purpose, around a real one."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Mapping

from latentloom.storage.backends import Backend, FileInfo, Parts

WRITES = frozenset({"write", "create", "write_folder"})


class Killed(BaseException):
    """A simulated SIGKILL: no ``except Exception`` sees it, and nothing works after it."""


class Watched:
    """A backend that calls ``before`` each operation, and ``seen`` with what is read."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def before(self, operation: str, path: str) -> None:
        """Called before each operation."""

    def seen(self, path: str, data: bytes) -> bytes:
        """Called with what was read."""
        return data

    @property
    def uri(self) -> str:
        return self._backend.uri

    @property
    def concurrency(self) -> int:
        return 1

    def read(self, path: str) -> bytes:
        self.before("read", path)
        return self.seen(path, self._backend.read(path))

    def read_buffer(self, path: str) -> bytearray:
        return bytearray(self.read(path))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self.before("write", path)
        self._backend.write(path, data, durable=durable)

    def create(self, path: str, data: bytes, *, durable: bool = True) -> None:
        self.before("create", path)
        self._backend.create(path, data, durable=durable)

    def write_folder(self, path: str, files: Mapping[str, Parts]) -> None:
        self.before("write_folder", path)
        self._backend.write_folder(path, files)

    def names(self, folder: str) -> list[str]:
        self.before("names", folder)
        return self._backend.names(folder)

    def walk(self, folder: str) -> Iterator[FileInfo]:
        self.before("walk", folder)
        return self._backend.walk(folder)

    def info(self, path: str) -> FileInfo:
        self.before("info", path)
        return self._backend.info(path)

    def delete(self, path: str) -> None:
        self.before("delete", path)
        self._backend.delete(path)

    def delete_folder(self, path: str) -> None:
        self.before("delete_folder", path)
        self._backend.delete_folder(path)


class KillAfter(Watched):
    """Kill after the k-th operation: the next one, and every one after it, never happens.

    Args:
        backend: The real backend.
        k: How many operations succeed; None counts only.
        kill: What dies; by default ``Killed`` is raised, now and at every later operation, so that
            no cleaning up works. ``lambda: os.kill(os.getpid(), SIGKILL)`` is the real thing.
    """

    def __init__(
        self, backend: Backend, k: int | None, kill: Callable[[], object] | None = None
    ) -> None:
        super().__init__(backend)
        self.count = 0
        self.operations: list[tuple[str, str]] = []
        self._k = k
        self._kill = kill
        self._lock = threading.Lock()

    @property
    def killed(self) -> bool:
        return self._k is not None and self.count > self._k

    def before(self, operation: str, path: str) -> None:
        with self._lock:
            self.count += 1
            if self.killed:
                if self._kill is not None:
                    self._kill()
                raise Killed(f"after {self._k} operations, before {operation} {path}")
            self.operations.append((operation, path))


class FlipBit(Watched):
    """Flip one bit of what is read from paths that end with ``suffix``."""

    def __init__(self, backend: Backend, suffix: str, *, bit: int) -> None:
        super().__init__(backend)
        self._suffix = suffix
        self._bit = bit

    def seen(self, path: str, data: bytes) -> bytes:
        if not path.endswith(self._suffix):
            return data
        place = self._bit // 8 % len(data)
        return data[:place] + bytes([data[place] ^ 1 << self._bit % 8]) + data[place + 1 :]


class ShortRead(Watched):
    """Drop the last byte of what is read from paths that end with ``suffix``."""

    def __init__(self, backend: Backend, suffix: str) -> None:
        super().__init__(backend)
        self._suffix = suffix

    def seen(self, path: str, data: bytes) -> bytes:
        return data[:-1] if path.endswith(self._suffix) else data


class FailFrom(Watched):
    """Fail ``times`` writes from the k-th on: a full disk, or one that fails once."""

    def __init__(
        self, backend: Backend, k: int, *, times: int = 10**9, number: int = errno.ENOSPC
    ) -> None:
        super().__init__(backend)
        self._times = times
        self._number = number
        self.writes = 0
        self.fail_from(k)

    def fail_from(self, k: int) -> None:
        """Fail from another write on."""
        self._failing = range(k, k + self._times)

    def before(self, operation: str, path: str) -> None:
        if operation in WRITES:
            self.writes += 1
            if self.writes in self._failing:
                raise OSError(self._number, "made to fail", path)
