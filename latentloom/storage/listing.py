"""List files by pattern, on this machine or at any allowed fsspec URI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from latentloom.errors import UsageError
from latentloom.storage.localize import check_scheme, version_fields
from latentloom.storage.remote import only_os_errors, time_of

_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class FoundFile:
    """One file that a pattern matches."""

    uri: str
    """Absolute path, or URI."""
    relative: PurePosixPath
    """Path below the fixed part of the pattern."""
    size: int
    """Bytes."""
    modified: float
    """Unix time of its change; 0 where the file system keeps none."""
    version: str
    """Says whether the file has changed: equal as long as it has not."""


def find_files(pattern: str, *, folder: Path) -> list[FoundFile]:
    """List the files that a pattern matches, sorted.

    Args:
        pattern: A path or fsspec URI with ``*``, ``?``, ``[...]`` and ``**`` (any folders), or without.
        folder: What relative paths are relative to.

    Raises:
        PolicyError: If the scheme is not allowed.
        UsageError: If the place cannot be reached.
    """
    check_scheme(pattern)
    full = pattern if "://" in pattern else str(folder / pattern)
    try:
        with only_os_errors():
            fs, path = fsspec.url_to_fs(full, use_listings_cache=False)
            listed: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
    except ImportError as error:
        raise UsageError(f"{pattern} needs a package that is not installed: {error}") from error
    except OSError as error:
        raise UsageError(f"{pattern} cannot be listed: {error}; check it and try again") from error
    return [
        _found(fs, name, facts, fixed_part(path), remote="://" in full)
        for name, facts in sorted(listed.items())
        if facts["type"] == "file"
    ]


def find_file(uri: str, *, folder: Path) -> FoundFile:
    """Describe one file, whose name may hold the characters of patterns.

    Raises:
        PolicyError: If the scheme is not allowed.
        UsageError: If it is not there.
    """
    check_scheme(uri)
    full = uri if "://" in uri else str(folder / uri)
    try:
        with only_os_errors():
            fs, path = fsspec.url_to_fs(full, use_listings_cache=False)
            facts: dict[str, Any] = fs.info(path)
    except OSError as error:
        raise UsageError(f"{uri} is not there: {error}; check it and try again") from error
    parent = PurePosixPath(path).parent
    return _found(fs, path, facts, str(parent), remote="://" in full)


def matches(pattern: str, path: str, *, folder: Path) -> bool:
    """Tell whether a path or URI is one that a pattern stands for."""
    full = pattern if "://" in pattern else str(folder / pattern)
    return re.match(glob_translate(full), path) is not None


def fixed_part(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard.

    >>> fixed_part("/videos/2024/**/*.mp4")
    '/videos/2024'
    >>> fixed_part("/videos/one.mp4")
    '/videos'
    """
    return str(PurePosixPath(*_fixed(PurePosixPath(pattern).parts)))


def _fixed(parts: tuple[str, ...]) -> Iterator[str]:
    for part in parts[:-1]:
        if _WILD.search(part):
            return
        yield part


def _found(fs: Any, name: str, facts: dict[str, Any], fixed: str, *, remote: bool) -> FoundFile:
    version = version_fields(facts)
    return FoundFile(
        uri=str(fs.unstrip_protocol(name)) if remote else name,
        relative=PurePosixPath(name).relative_to(fixed),
        size=int(facts.get("size") or 0),
        modified=time_of(facts) or 0.0,
        version="; ".join(f"{field} {version[field]}" for field in sorted(version)),
    )
