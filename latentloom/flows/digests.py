"""Digest files, and remember the result by path, size and time of change."""

from __future__ import annotations

import hashlib
from pathlib import Path

from latentloom.schemas.base import digest
from latentloom.storage.store import Store

MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}
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


def folder_digest(folder: Path, store: Store) -> str:
    """Return a digest over the names and contents of a model's files."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in MODEL_SUFFIXES)
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
