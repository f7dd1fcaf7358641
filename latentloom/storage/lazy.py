"""One stage as a lazy dask array: a chunk is read, and checked, when it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array
from dask.delayed import delayed
from numpy.typing import NDArray

from latentloom.schemas.record import Record
from latentloom.storage.frames import in_frame_order, readable, readable_dtype
from latentloom.storage.store import Store

# Neither has types.
_from_delayed: Any = dask.array.from_delayed
_concatenate: Any = dask.array.concatenate


def lazy_array(store: Store, records: Sequence[Record]) -> dask.array.Array:
    """Join the chunks of a stage along frames, without opening any of them.

    Args:
        store: The store.
        records: Chunks without gap or overlap, in any order.

    Returns:
        A dask array, frames first, one block for each chunk; bfloat16 as float32. Cast float16 to
        float32 before ``mean``: dask's overflows to 0.0 in silence.

    Raises:
        UsageError: The records do not make one array.
    """
    ordered = in_frame_order(records)
    read = delayed(_read, pure=False)
    blocks = [
        _from_delayed(
            read(store, record),
            shape=record.shape,
            dtype=readable_dtype(record.dtype),
            name=f"chunk-{record.sha256}-{record.start}",
        )
        for record in ordered
    ]
    joined: dask.array.Array = _concatenate(blocks, axis=0)
    return joined


def _read(store: Store, record: Record) -> NDArray[Any]:
    return readable(store.read(record), record.dtype)
