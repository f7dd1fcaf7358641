"""A store behind fsspec: plain puts; exclusive ones with ``If-None-Match: *`` on S3."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import fsspec

from latentloom.storage.backends import FileInfo, Parts

# S3 answers 409 to one of two creations that overlap, and asks for another try.
_CREATE_ATTEMPTS = 4
_CREATE_PAUSE_SECONDS = 0.1

_TIME_FIELDS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")

# The memory file system checks and then writes; s3 and gcs decide at the server.
_MEMORY_LOCK = threading.Lock()


class FsspecBackend:
    """A store at any fsspec URI that can create a file exclusively."""

    concurrency = 16

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        with only_os_errors():
            # Listings that are cached would hide what other workers wrote.
            self._fs, root = fsspec.url_to_fs(self.uri, use_listings_cache=False)
        self._root = str(root).rstrip("/")

    def read(self, path: str) -> bytes:
        """Read a whole file."""
        with only_os_errors():
            data: bytes = self._fs.cat_file(self._full(path))
            return data

    def read_buffer(self, path: str) -> bytearray:
        """Read a whole file, and copy it."""
        return bytearray(self.read(path))

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Put a file."""
        with only_os_errors():
            self._fs.pipe_file(self._full(path), data)

    def create(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Put a file that must not exist.

        Where an answer was lost this raises ``FileExistsError`` although the file is the caller's
        own: callers compare contents before they give up.
        """
        for attempt in range(_CREATE_ATTEMPTS):
            try:
                with only_os_errors(), self._lock():
                    self._fs.pipe_file(self._full(path), data, mode="create")
            except FileExistsError:
                raise
            except OSError as error:
                if self._exists(path):
                    raise FileExistsError(path) from error
                if isinstance(error, (FileNotFoundError, PermissionError)):
                    raise
                if attempt == _CREATE_ATTEMPTS - 1:
                    raise
                time.sleep(_CREATE_PAUSE_SECONDS)
            else:
                return

    def write_folder(self, path: str, files: Mapping[str, Parts]) -> None:
        """Put some files under one prefix."""
        for name, parts in files.items():
            self.write(f"{path}/{name}", b"".join(parts))

    def names(self, folder: str) -> list[str]:
        """List a prefix."""
        full = self._full(folder)
        try:
            with only_os_errors():
                listed = self._fs.ls(full, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(name)[len(full) :].strip("/") for name in listed if name != full)

    def walk(self, folder: str) -> Iterator[FileInfo]:
        """Describe every file below a prefix."""
        try:
            with only_os_errors():
                found: dict[str, dict[str, Any]] = self._fs.find(self._full(folder), detail=True)
        except FileNotFoundError:
            return
        for name in sorted(found):
            yield _described(name[len(self._root) :].strip("/"), found[name])

    def info(self, path: str) -> FileInfo:
        """Describe one file."""
        with only_os_errors():
            facts: dict[str, Any] = self._fs.info(self._full(path))
        if facts["type"] != "file":
            raise FileNotFoundError(path)
        return _described(path, facts)

    def delete(self, path: str) -> None:
        """Delete a file."""
        with contextlib.suppress(FileNotFoundError), only_os_errors():
            self._fs.rm_file(self._full(path))

    def delete_folder(self, path: str) -> None:
        """Delete every file below a prefix."""
        with contextlib.suppress(FileNotFoundError), only_os_errors():
            self._fs.rm(self._full(path), recursive=True)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _exists(self, path: str) -> bool:
        try:
            self.info(path)
        except OSError:
            return False
        return True

    def _lock(self) -> contextlib.AbstractContextManager[object]:
        return _MEMORY_LOCK if self.uri.startswith("memory:") else contextlib.nullcontext()


@contextlib.contextmanager
def only_os_errors() -> Iterator[None]:
    """Client libraries raise classes of their own, some of which do not pickle."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _described(path: str, facts: Mapping[str, Any]) -> FileInfo:
    modified = time_of(facts)
    # Without a time a file counts as new, so that nothing is taken for old by mistake.
    return FileInfo(path, int(facts["size"] or 0), time.time() if modified is None else modified)


def time_of(facts: Mapping[str, Any]) -> float | None:
    """Return the Unix time of a file's last change, where its file system keeps one."""
    stamp = next((facts[name] for name in _TIME_FIELDS if facts.get(name) is not None), None)
    if isinstance(stamp, datetime):
        return stamp.timestamp()
    return float(stamp) if isinstance(stamp, (int, float)) else None
