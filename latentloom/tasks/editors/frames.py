"""Take frames that were edited elsewhere."""

from __future__ import annotations

from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array


def frames(chunk: OpenChunk) -> Array:
    """Read the frames of a chunk from their map, at the size and depth of the source's."""
    return chunk.map_frames("frames", high_bit_depth=chunk.dtype == "uint16")
