"""Chunks of one stage in the order of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentloom.errors import UsageError
from latentloom.schemas.record import Record


def in_frame_order(records: Sequence[Record]) -> list[Record]:
    """Sort records by frame, and check that they make one array without gap or overlap.

    Raises:
        UsageError: They do not.
    """
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
    for before, after in pairwise(ordered):
        if before.stop != after.start:
            what = "a gap" if before.stop < after.start else "an overlap"
            raise UsageError(
                f"{what} between frames {before.start}:{before.stop} and "
                f"{after.start}:{after.stop}; windows have to be blended into frames first"
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
