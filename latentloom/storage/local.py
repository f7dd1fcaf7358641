"""A store in a local folder: temp file, fsync, rename or hard link, fsync of the folder."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from latentloom.storage.backends import FileInfo, Parts
from latentloom.storage.layout import TEMP

# What link(2) says where a file system has none; EACCES would be about the folder.
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS})


class LocalBackend:
    """A store in a local folder that has hard links, shared or not."""

    concurrency = 1

    def __init__(self, root: Path | str) -> None:
        self._root = Path(root).absolute()

    @property
    def uri(self) -> str:
        """Absolute path of the root."""
        return str(self._root)

    def read(self, path: str) -> bytes:
        """Read a whole file."""
        return (self._root / path).read_bytes()

    def read_buffer(self, path: str) -> bytearray:
        """Read a whole file into memory of its own."""
        with open(self._root / path, "rb") as file:
            buffer = bytearray(os.fstat(file.fileno()).st_size)
            file.readinto(buffer)
        return buffer

    def write(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Make or replace a file by renaming a finished one over it."""
        target = self._root / path
        temp = self._new_temp()
        try:
            _write_file(temp, data, durable=durable)
            _make_folder(target.parent)
            os.replace(temp, target)
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        if durable:
            _sync_folder(target.parent)

    def create(self, path: str, data: bytes, *, durable: bool = True) -> None:
        """Make a file that must not exist, by a hard link to a finished one."""
        target = self._root / path
        temp = self._new_temp()
        try:
            _write_file(temp, data, durable=durable)
            _make_folder(target.parent)
            _link(temp, target)
        finally:
            temp.unlink(missing_ok=True)
        if durable:
            _sync_folder(target.parent)

    def write_folder(self, path: str, files: Mapping[str, Parts]) -> None:
        """Make a folder by renaming a finished one into place."""
        target = self._root / path
        temp = self._new_temp()
        try:
            temp.mkdir()
            for name, parts in files.items():
                _write_file(temp / name, *parts, durable=True)
            _sync_folder(temp)
            _make_folder(target.parent)
            os.rename(temp, target)
        except OSError:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        _sync_folder(target.parent)

    def names(self, folder: str) -> list[str]:
        """List a folder."""
        try:
            return sorted(os.listdir(self._root / folder))
        except FileNotFoundError:
            return []

    def walk(self, folder: str) -> Iterator[FileInfo]:
        """Describe every file below a folder."""
        for parent, folders, names in os.walk(self._root / folder):
            folders.sort()
            for name in sorted(names):
                path = (Path(parent) / name).relative_to(self._root).as_posix()
                try:
                    yield self.info(path)
                except FileNotFoundError:
                    continue  # deleted since it was listed

    def info(self, path: str) -> FileInfo:
        """Describe one file."""
        facts = os.stat(self._root / path)
        return FileInfo(path, facts.st_size, facts.st_mtime)

    def delete(self, path: str) -> None:
        """Delete a file."""
        (self._root / path).unlink(missing_ok=True)

    def delete_folder(self, path: str) -> None:
        """Delete a folder."""
        try:
            shutil.rmtree(self._root / path)
        except FileNotFoundError:
            # Someone else is deleting it too; what both missed is an orphan, and prune's.
            shutil.rmtree(self._root / path, ignore_errors=True)

    def _new_temp(self) -> Path:
        _make_folder(self._root / TEMP)
        return self._root / TEMP / secrets.token_hex(8)


def _write_file(path: Path, *parts: bytes | memoryview, durable: bool) -> None:
    with open(path, "xb") as file:
        file.writelines(parts)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def _link(temp: Path, target: Path) -> None:
    try:
        os.link(temp, target)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise OSError(
                error.errno, f"the file system of {target} has no hard links; use another folder"
            ) from error
        raise


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
