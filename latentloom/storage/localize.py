"""Bring a remote source to a local file, since PyAV opens files and not URLs."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec

from latentloom.errors import LatentloomError, MediaError, PolicyError, ResourceError, UsageError
from latentloom.storage.backends import DISK_FULL, local_path

SCHEMES = frozenset({"file", "s3", "gs", "gcs", "az", "abfs", "http", "https", "memory"})

# What says that a remote file has changed; each file system has some of these.
_VERSION_FIELDS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "updated")


def sources_folder() -> Path:
    """Return where downloads of this user are kept; no other user can read or fill it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "latentloom" / "sources"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def localize(uri: str, folder: Path, *, field: str = "source.uri") -> Path:
    """Give the local path of a source, downloading it where it is remote.

    Args:
        uri: A path, or a URI of an allowed scheme.
        folder: Where downloads are kept, one for each URI, size and version.
        field: Field of the recipe that names it, for errors.

    Returns:
        The path; a local one as it is.

    Raises:
        PolicyError: A scheme that is not allowed, or a chain of file systems.
        MediaError: There is no such file, or it cannot be read.
    """
    check_scheme(uri)
    local = local_path(uri)
    if local is not None:
        if not local.is_file():
            raise MediaError(f"there is no video at {local}; check {field}")
        return local
    try:
        return _download(uri, folder, field)
    except LatentloomError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"there is no video at {uri}; check {field}") from error
    except ImportError as error:
        raise UsageError(f"{uri} needs a package that is not installed: {error}") from error
    except Exception as error:  # client libraries raise classes of their own
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise ResourceError(f"no space left in {folder} for {uri}; free some") from error
        raise MediaError(f"cannot read {uri}: {type(error).__name__}: {error}") from error


def check_scheme(uri: str) -> None:
    """Refuse what is not a path or a URI of an allowed scheme.

    Raises:
        PolicyError: It is not.
    """
    if "::" in uri:
        raise PolicyError(f"{uri}: chains of file systems ('::') are not allowed")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    if scheme and scheme[1].lower() not in SCHEMES:
        raise PolicyError(
            f"{uri}: scheme {scheme[1]!r} is not allowed; use one of {', '.join(sorted(SCHEMES))}"
        )


def version_fields(facts: dict[str, Any]) -> dict[str, str]:
    """Return what says that a file has changed, of what its file system tells about it."""
    return {name: str(facts[name]) for name in _VERSION_FIELDS if facts.get(name) is not None}


def _download(uri: str, folder: Path, field: str) -> Path:
    fs, path = fsspec.url_to_fs(uri, use_listings_cache=False)
    facts: dict[str, Any] = fs.info(path)
    if facts.get("type") == "directory":
        raise MediaError(f"{uri} is a folder; {field} has to name one video")
    version = version_fields(facts)
    digest = hashlib.sha256(repr((uri, sorted(version.items()))).encode()).hexdigest()[:32]
    suffix = PurePosixPath(urlsplit(uri).path).suffix
    target = folder / f"{digest}{suffix if re.fullmatch(r'[.][0-9A-Za-z]+', suffix) else ''}"
    # A size alone does not tell two versions apart.
    if target.exists() and set(version) - {"size"}:
        return target
    partial = folder / f".{digest}.{secrets.token_hex(4)}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fs.get_file(path, str(partial))
        size = facts.get("size")
        if size is not None and partial.stat().st_size != size:
            raise MediaError(
                f"{uri} broke off after {partial.stat().st_size} of {size} bytes; try again"
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target
