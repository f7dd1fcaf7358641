"""What one finished chunk is: where its bytes lie, what they hash to, which frames they cover.

A record is the only proof that a chunk is done. But for the random part of its object's name it
holds nothing that differs between two workers: no time, host or run.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeInt, model_validator

RECORD_FORMAT = 1

Key = Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")]
"""A chunk key: lower-case hexadecimal, in practice a sha256."""


class Record(BaseModel):
    """Proof that a chunk is done, and the way to its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    key: Key
    """Chunk key: hash of everything that makes the chunk."""
    object: Annotated[str, Field(pattern=r"^data/[0-9a-f]{2}/[0-9a-f]{8,128}\.[0-9a-z]{1,64}$")]
    """Folder of the array, relative to the store: ``data/<2 hex>/<key>.<random>``."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest over dtype, shape and C-order bytes."""
    shape: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    """Shape of the array, frames first."""
    dtype: str
    """Dtype the chunk was computed in; ``bfloat16`` lies in the object as uint16 bits."""
    start: NonNegativeInt
    """First source frame."""
    stop: NonNegativeInt
    """Source frame after the last one."""
    attributes: dict[str, JsonValue] = {}
    """What a reader must know besides, the same for every worker."""
    format: Annotated[int, Field(ge=1, le=RECORD_FORMAT)] = RECORD_FORMAT
    """Version of this form."""

    @model_validator(mode="after")
    def _object_belongs_to_key(self) -> Self:
        if not self.object.startswith(f"data/{self.key[:2]}/{self.key}."):
            raise ValueError(f"object {self.object} is not one of key {self.key}")
        if self.stop < self.start:
            raise ValueError(f"stop {self.stop} lies before start {self.start}")
        return self
