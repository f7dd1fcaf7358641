"""Open the place of a store: check that it is one of a known format, or make it one."""

from __future__ import annotations

import contextlib
import json

from latentloom.errors import StoreError, StoreFormatError
from latentloom.storage import layout
from latentloom.storage.backends import Backend, local_path
from latentloom.storage.local import LocalBackend
from latentloom.storage.remote import FsspecBackend


def open_backend(uri: str) -> Backend:
    """Choose the backend for a URI or a local path."""
    local = local_path(uri)
    return FsspecBackend(uri) if local is None else LocalBackend(local)


def ensure_store(backend: Backend, *, create: bool) -> None:
    """Check the format of the store at a backend, and make it if there is none.

    Raises:
        StoreError: There is no store, or something else lies there.
        StoreFormatError: The store was written by a newer version.
    """
    try:
        check_format(backend.read(layout.STORE_FILE), backend.uri)
    except FileNotFoundError:
        if not create:
            raise StoreError(f"there is no store at {backend.uri}; check --store") from None
        _make(backend)


def check_format(data: bytes, uri: str) -> None:
    """Check the content of ``store.json``."""
    try:
        version = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError):
        version = None
    if type(version) is not int or version < 1:
        raise StoreError(
            f"{layout.STORE_FILE} of store {uri} is damaged; "
            f'its content should be {{"format": {layout.STORE_FORMAT}}}'
        )
    if version > layout.STORE_FORMAT:
        raise StoreFormatError(
            f"store {uri} has format {version}, this version reads up to {layout.STORE_FORMAT}; "
            "install a newer latentloom, or use another --store"
        )


def _make(backend: Backend) -> None:
    strangers = [
        name
        for name in backend.names("")
        if name not in (*layout.FOLDERS, layout.STORE_FILE) and not name.startswith(".")
    ]
    if strangers:
        raise StoreError(
            f"{backend.uri} is no store but holds {strangers[0]!r}; give --store an empty folder"
        )
    data = json.dumps({"format": layout.STORE_FORMAT}).encode() + b"\n"
    with contextlib.suppress(FileExistsError):
        backend.create(layout.STORE_FILE, data)
    _check_exclusive(backend, data)


def _check_exclusive(backend: Backend, data: bytes) -> None:
    try:
        backend.create(layout.STORE_FILE, data)
    except FileExistsError:
        return
    raise StoreError(
        f"the file system of {backend.uri} cannot create a file exclusively, "
        "so two workers could commit one chunk; use a local folder or S3"
    )
