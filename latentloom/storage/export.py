"""Write a stage as one Zarr v3 array that any tool can open."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import zarr
from fsspec.implementations.asyn_wrapper import (  # type: ignore[import-untyped]
    AsyncFileSystemWrapper,
)
from pydantic import JsonValue
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import FsspecStore

from latentloom.errors import MissingChunkError, UsageError
from latentloom.schemas.record import Record
from latentloom.storage.backends import explained, local_path
from latentloom.storage.frames import in_frame_order, readable, readable_dtype
from latentloom.storage.opening import open_backend
from latentloom.storage.store import Store


def export_stage(
    store: Store,
    records_or_keys: Sequence[Record | str],
    destination: str,
    *,
    attributes: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write the chunks of a stage as one Zarr array, one chunk in memory at a time.

    Args:
        store: The store.
        records_or_keys: Chunks without gap or overlap, in any order.
        destination: A folder or fsspec URI that does not exist. A local one appears when it is
            complete; elsewhere the attribute ``complete`` turns true at the end.
        attributes: Where the array comes from: run id, stage.

    Raises:
        UsageError: The destination exists, or the chunks do not make one array.
        MissingChunkError: A key has no record.
    """
    records = in_frame_order([_record(store, item) for item in records_or_keys])
    provenance = {**_provenance(records), **(attributes or {})}
    local = local_path(destination)
    with explained(destination, "write"):
        if local is None:
            if open_backend(destination).names(""):
                raise _exists(destination)
            _write(store, records, _remote_target(destination), provenance)
        else:
            _write_local(store, records, local, provenance)


def _write_local(
    store: Store, records: Sequence[Record], target: Path, provenance: Mapping[str, JsonValue]
) -> None:
    if target.exists():
        raise _exists(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        _write(store, records, str(partial), provenance)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    store: Store,
    records: Sequence[Record],
    target: str | FsspecStore,
    provenance: Mapping[str, JsonValue],
) -> None:
    first, last = records[0], records[-1]
    array = zarr.create_array(
        store=target,
        shape=(last.stop - first.start, *first.shape[1:]),
        # All chunks but those at the ends of a cut or shot have the full length.
        chunks=(max(record.shape[0] for record in records), *first.shape[1:]),
        dtype=readable_dtype(first.dtype),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=0,
        attributes={**provenance, "complete": False},
        config={"write_empty_chunks": True},
    )
    for record in records:
        rows: Any = slice(record.start - first.start, record.stop - first.start)
        array[rows] = readable(store.read(record), record.dtype)
    array.attrs["complete"] = True


def _remote_target(uri: str) -> FsspecStore:
    fs, path = fsspec.url_to_fs(uri, use_listings_cache=False)
    # The asynchronous file system that zarr would open by itself is never closed.
    return FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=str(path))


def _provenance(records: Sequence[Record]) -> dict[str, JsonValue]:
    return {
        "start": records[0].start,
        "stop": records[-1].stop,
        "dtype": records[0].dtype,
        "chunks": [
            {"key": r.key, "sha256": r.sha256, "start": r.start, "stop": r.stop} for r in records
        ],
    }


def _record(store: Store, item: Record | str) -> Record:
    if isinstance(item, Record):
        return item
    record = store.find(item)
    if record is None:
        raise MissingChunkError(
            f"store {store.uri} has no chunk {item}. "
            "Run the same command again; finished chunks are kept"
        )
    return record


def _exists(destination: str) -> UsageError:
    return UsageError(f"{destination} exists; choose a new name for the export")
