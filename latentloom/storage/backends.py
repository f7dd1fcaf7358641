"""What a store needs of a file system, and nothing more; the seam at which tests inject faults.

Every operation raises ``OSError`` only, ``FileNotFoundError`` and ``FileExistsError`` among them.
Paths are relative to the store's root, with ``/``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import unquote, urlsplit

from latentloom.errors import ResourceError, StoreError

# A limit on the size of files, EFBIG, is the same to its user.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


Parts: TypeAlias = tuple[bytes | memoryview, ...]
"""What a file holds, one part behind the other: arrays are too large to copy for a few bytes more."""


@dataclass(frozen=True)
class FileInfo:
    """One file, as the file system describes it."""

    path: str
    size: int
    modified: float
    """Unix time in seconds, by the clock of the file system."""


class Backend(Protocol):
    """The operations of a store; a killed one leaves nothing half made under a final name."""

    @property
    def uri(self) -> str:
        """Where this is; ``opening.open_backend`` makes an equal backend of it in any process."""

    @property
    def concurrency(self) -> int:
        """How many operations are worth having in flight."""

    def read(self, path: str) -> bytes:
        """Read a whole file."""

    def read_buffer(self, path: str) -> bytearray:
        """Read a whole file into memory that the caller may write to: an array needs no copy of it."""

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Make or replace a small file: readers see the old bytes or the new ones."""

    def create(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Make a file that must not exist; of many callers exactly one succeeds."""

    def write_folder(self, path: str, files: Mapping[str, Parts]) -> None:
        """Make a folder of files durable; on object stores a kill can leave some of them."""

    def names(self, folder: str) -> list[str]:
        """List what lies directly in a folder, sorted; empty if there is no such folder."""

    def walk(self, folder: str) -> Iterator[FileInfo]:
        """Describe every file below a folder, sorted by path."""

    def info(self, path: str) -> FileInfo:
        """Describe one file."""

    def delete(self, path: str) -> None:
        """Delete a file; one that has gone is no error."""

    def delete_folder(self, path: str) -> None:
        """Delete a folder with its files; one that has gone is no error."""


def local_path(uri: str) -> Path | None:
    """Path that ``uri`` means on this machine, absolute, or None if it lies elsewhere.

    >>> local_path("file:///tmp/a%20b")
    PosixPath('/tmp/a b')
    >>> local_path("s3://bucket/store") is None
    True
    """
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri) or "::" in uri:
        return None
    return Path(os.path.abspath(os.path.expanduser(uri)))


def delete_if_same(backend: Backend, path: str, expected: bytes) -> None:
    """Delete a small file unless it has changed; what another worker wrote meanwhile stays."""
    with contextlib.suppress(FileNotFoundError):
        if backend.read(path) == expected:
            backend.delete(path)


@contextlib.contextmanager
def explained(
    uri: str, what: str, *, passing: type[OSError] | tuple[type[OSError], ...] = ()
) -> Iterator[None]:
    """Turn the errors of a file system into ones that say what to do.

    Args:
        uri: The store.
        what: What was tried, as a verb.
        passing: Errors that the caller handles itself.

    Raises:
        ResourceError: The disk is full.
        StoreError: Anything else.
    """
    try:
        yield
    except passing:
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"no space left to {what} store {uri}. Finished chunks are kept: free some space "
                "(`latentloom prune`, `latentloom du`) and run the same command again"
            ) from error
        raise StoreError(
            f"cannot {what} store {uri}: {type(error).__name__}: {error}. Finished chunks are kept"
        ) from error
