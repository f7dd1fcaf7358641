"""Mix two inversions once, at their end (BIVDiff, 2312.02813)."""

from __future__ import annotations

from latentloom.ops.interpolate import mix as mix_latents
from latentloom.schemas.stages import MixStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array, latents_to_array


def mix(chunk: OpenChunk) -> Array:
    """Return ``ratio`` of the first input and the rest of the second."""
    stage = chunk.params(MixStage)
    first, second = chunk.input_latents(0), chunk.input_latents(1)
    return latents_to_array(
        mix_latents(first, second, stage.ratio, stage.interpolation), chunk.dtype
    )
