"""One stage as a lazy dask array: a chunk is read, and checked, when it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array
from dask.delayed import delayed

from latentloom.schemas.record import Record
from latentloom.storage.frames import Overlaps, cut_pieces, read_piece, readable_dtype
from latentloom.storage.store import Store

# Neither has types.
_from_delayed: Any = dask.array.from_delayed
_concatenate: Any = dask.array.concatenate


def lazy_array(
    store: Store, records: Sequence[Record], *, overlaps: Overlaps | None = None
) -> dask.array.Array:
    """Join the chunks of a stage along frames, without opening any of them.

    Args:
        store: The store.
        records: Chunks without gap, in any order.
        overlaps: How overlapping windows are joined; without it they are refused.

    Returns:
        A dask array, frames first, one block for each chunk; bfloat16 as float32. Cast float16 to
        float32 before ``mean``: dask's overflows to 0.0 in silence.

    Raises:
        UsageError: The records do not make one array.
    """
    read = delayed(read_piece, pure=False)
    blocks = []
    for piece in cut_pieces(records, overlaps):
        names = "-".join(record.sha256[:32] for record in piece.records)
        blocks.append(
            _from_delayed(
                read(store, piece, overlaps),
                shape=(piece.stop - piece.start, *piece.records[0].shape[1:]),
                dtype=readable_dtype(piece.records[0].dtype),
                name=f"frames-{piece.start}-{piece.stop}-{names}",
            )
        )
    joined: dask.array.Array = _concatenate(blocks, axis=0)
    return joined
