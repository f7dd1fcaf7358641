"""Write a stage as one Zarr v3 array that any tool can open."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import zarr
from fsspec.implementations.asyn_wrapper import (
    AsyncFileSystemWrapper,
)
from pydantic import JsonValue
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import FsspecStore

from latentloom.errors import MissingChunkError, UsageError
from latentloom.schemas.record import Record
from latentloom.storage.backends import explained, local_path
from latentloom.storage.frames import Overlaps, Piece, cut_pieces, read_piece, readable_dtype
from latentloom.storage.opening import open_backend
from latentloom.storage.store import Store


def export_stage(
    store: Store,
    records_or_keys: Sequence[Record | str],
    destination: str,
    *,
    overlaps: Overlaps | None = None,
    attributes: Mapping[str, JsonValue] | None = None,
) -> None:
    """Write the chunks of a stage as one Zarr array, one chunk in memory at a time.

    Args:
        store: The store.
        records_or_keys: Chunks without gap, in any order.
        destination: A folder or fsspec URI that does not exist. A local one appears when it is
            complete; elsewhere the attribute ``complete`` turns true at the end.
        overlaps: How overlapping windows are joined; without it they are refused.
        attributes: Where the array comes from: run id, stage.

    Raises:
        UsageError: The destination exists, or the chunks do not make one array.
        MissingChunkError: A key has no record.
    """
    pieces = cut_pieces([_record(store, item) for item in records_or_keys], overlaps)
    records = [piece.records[-1] for piece in pieces]
    provenance = {**_provenance(records), **(attributes or {})}
    source = _Source(store, pieces, overlaps)
    local = local_path(destination)
    with explained(destination, "write"):
        if local is None:
            if open_backend(destination).names(""):
                raise _exists(destination)
            _write(source, _remote_target(destination), provenance)
        else:
            _write_local(source, local, provenance)


@dataclass(frozen=True)
class _Source:
    store: Store
    pieces: list[Piece]
    overlaps: Overlaps | None


def _write_local(source: _Source, target: Path, provenance: Mapping[str, JsonValue]) -> None:
    if target.exists():
        raise _exists(str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        _write(source, str(partial), provenance)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    source: _Source,
    target: str | FsspecStore,
    provenance: Mapping[str, JsonValue],
) -> None:
    first, last = source.pieces[0], source.pieces[-1]
    record = first.records[0]
    array = zarr.create_array(
        store=target,
        shape=(last.stop - first.start, *record.shape[1:]),
        # All chunks but those at the ends of a cut or shot have the full length.
        chunks=(max(p.stop - p.start for p in source.pieces), *record.shape[1:]),
        dtype=readable_dtype(record.dtype),
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=0,
        attributes={**provenance, "complete": False},
        config={"write_empty_chunks": True},
    )
    for piece in source.pieces:
        rows: Any = slice(piece.start - first.start, piece.stop - first.start)
        array[rows] = read_piece(source.store, piece, source.overlaps)
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
