"""Records as bytes: equal records give equal bytes, and a flipped bit is found."""

from __future__ import annotations

from latentloom.errors import DamagedChunkError, StoreFormatError
from latentloom.schemas.record import RECORD_FORMAT, Record
from latentloom.storage import layout
from latentloom.storage.sealed import seal, unseal

REPAIR = "delete it and run the same command again: it will be computed anew"


def encode_record(record: Record) -> bytes:
    """Write a record."""
    return seal(record.model_dump(mode="json"))


def parse_record(data: bytes, path: str) -> Record:
    """Read the record that lies at ``path``.

    Raises:
        DamagedChunkError: These are not the bytes of a record of this path's key.
        StoreFormatError: A newer version wrote it.
    """
    try:
        fields = unseal(data)
        version = fields.get("format")
        if isinstance(version, int) and version > RECORD_FORMAT:
            raise StoreFormatError(
                f"record {path} has format {version}, this version reads up to {RECORD_FORMAT}; "
                "install a newer latentloom"
            )
        record = Record.model_validate(fields)
    except ValueError as error:  # pydantic's ValidationError is one
        raise DamagedChunkError(f"record {path} is damaged ({error}); {REPAIR}") from error
    if layout.record_path(record.key) != path:
        raise DamagedChunkError(f"record {path} is damaged (its key is {record.key}); {REPAIR}")
    return record
