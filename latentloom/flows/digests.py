"""Digest files, and remember the result by path, size and time of change."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from latentloom.schemas.base import digest
from latentloom.storage.store import Store

_BLOCK = 1 << 20


def file_digest(path: Path, store: Store) -> str:
    """Return the sha256 of a file, from the cache where the file has not changed."""
    stat = path.stat()
    name = digest([str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    cached = store.cached("digest", name)
    if isinstance(cached, str):
        return cached
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    store.put_cached("digest", name, hasher.hexdigest())
    return hasher.hexdigest()


def files_digest(folder: Path, files: Sequence[Path], store: Store) -> str:
    """Return a digest over the names and contents of files in a folder."""
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    name = digest(
        [str(folder.resolve()), *([rel, stat.st_size, stat.st_mtime_ns] for rel, stat in stats)]
    )
    cached = store.cached("digest", name)
    if isinstance(cached, str):
        return cached
    found = digest(
        [[path.relative_to(folder).as_posix(), file_digest(path, store)] for path in files]
    )
    store.put_cached("digest", name, found)
    return found
