"""Objects: written once, whole, and checked to the last bit when they are read."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from latentloom.errors import DamagedChunkError
from latentloom.schemas.record import Record
from latentloom.storage import arrays
from latentloom.storage.backends import Backend
from latentloom.storage.records import REPAIR


def write_object(backend: Backend, record: Record, array: NDArray[Any]) -> None:
    """Make the object of a record durable."""
    backend.write_folder(record.object, arrays.encode_array(array))


def read_object(backend: Backend, record: Record) -> NDArray[Any]:
    """Read the object of a record.

    Raises:
        FileNotFoundError: It has gone, or a part of it.
        DamagedChunkError: Its bytes are not those that were committed.
    """
    files = {name: backend.read_buffer(f"{record.object}/{name}") for name in _names(record)}
    what = f"object {record.object} of chunk {record.key} in store {backend.uri} is damaged"
    try:
        array = arrays.decode_array(files, record.shape, arrays.stored_dtype(record.dtype))
    except ValueError as error:
        raise DamagedChunkError(f"{what} ({error}); {REPAIR}") from error
    if arrays.digest(array, record.dtype) != record.sha256:
        raise DamagedChunkError(f"{what} (its digest differs); {REPAIR}")
    return array


def has_object(backend: Backend, record: Record) -> bool:
    """Say whether the files of a record's object are there, without reading them."""
    return set(_names(record)) <= set(backend.names(record.object))


def _names(record: Record) -> tuple[str, str]:
    return arrays.METADATA_FILE, arrays.chunk_file(len(record.shape))
