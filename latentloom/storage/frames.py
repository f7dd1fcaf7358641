"""Chunks of one stage as frames: in order, and with overlapping windows joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentloom.errors import UsageError
from latentloom.ops.blend import WeightShape, blend
from latentloom.schemas.record import Record
from latentloom.storage.store import Store


@dataclass(frozen=True)
class Overlaps:
    """How frames that several windows hold are read."""

    frames: int
    """Frames that neighbours share."""
    shape: WeightShape | None
    """Weights of the average; None takes a frame from the window that starts last."""


@dataclass(frozen=True)
class Piece:
    """Frames that one read gives, and the chunks that hold them."""

    start: int
    stop: int
    records: tuple[Record, ...]


def cut_pieces(records: Sequence[Record], overlaps: Overlaps | None = None) -> list[Piece]:
    """Cut a stage into pieces without gap or overlap.

    Args:
        records: Its chunks, in any order.
        overlaps: How overlapping chunks are joined; without it they are refused.

    Raises:
        UsageError: The chunks do not make one array.
    """
    ordered = _alike(records)
    for before, after in pairwise(ordered):
        if before.stop < after.start or (before.stop > after.start and overlaps is None):
            what = "a gap" if before.stop < after.start else "an overlap"
            raise UsageError(
                f"{what} between frames {before.start}:{before.stop} and "
                f"{after.start}:{after.stop}; the chunks make no single array"
            )
    pieces, open_records = [], list[Record]()
    for index, record in enumerate(ordered):
        stop = ordered[index + 1].start if index + 1 < len(ordered) else record.stop
        open_records = [other for other in open_records if other.stop > record.start]
        open_records.append(record)
        pieces.append(Piece(record.start, stop, tuple(open_records)))
    return pieces


def read_piece(store: Store, piece: Piece, overlaps: Overlaps | None = None) -> NDArray[Any]:
    """Read the frames of a piece, as numbers."""
    parts = [(r.start, readable(store.read(r), r.dtype)) for r in _wanted(piece, overlaps)]
    if len(parts) > 1 and overlaps is not None and overlaps.shape is not None:
        joined = blend(
            parts, piece.start, piece.stop, overlap=overlaps.frames, shape=overlaps.shape
        )
        return joined.astype(parts[0][1].dtype)
    start, array = parts[-1]
    return array[piece.start - start : piece.stop - start]


def _wanted(piece: Piece, overlaps: Overlaps | None) -> tuple[Record, ...]:
    blended = overlaps is not None and overlaps.shape is not None
    return piece.records if blended else piece.records[-1:]


def _alike(records: Sequence[Record]) -> list[Record]:
    if not records:
        raise UsageError("no chunks to read; run the recipe first")
    ordered = sorted(records, key=lambda record: record.start)
    for record in ordered:
        if record.shape[0] != record.stop - record.start:
            raise UsageError(
                f"chunk {record.key} holds {record.shape[0]} rows for frames "
                f"{record.start}:{record.stop}; only stages of frames or latents make one array"
            )
        if (record.shape[1:], record.dtype) != (ordered[0].shape[1:], ordered[0].dtype):
            raise UsageError(
                f"chunk {record.key} is {record.dtype} {record.shape[1:]}, the first one is "
                f"{ordered[0].dtype} {ordered[0].shape[1:]}; they make no single array"
            )
    return ordered


def readable_dtype(dtype: str) -> np.dtype[Any]:
    """Dtype that a chunk has for readers: NumPy knows no bfloat16, float32 holds it exactly."""
    return np.dtype("float32" if dtype == "bfloat16" else dtype)


def readable(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn stored bits into numbers.

    >>> readable(np.array([0x3F80], dtype="uint16"), "bfloat16")
    array([1.], dtype=float32)
    """
    if dtype != "bfloat16":
        return array
    return (array.astype("uint32") << 16).view("float32")
