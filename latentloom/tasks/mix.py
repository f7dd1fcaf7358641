"""Mix two inversions once, at their end (BIVDiff, 2312.02813)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from latentloom.ops.interpolate import mix as mix_latents
from latentloom.schemas.fusion import MixStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array, latents_to_array


def mix(chunk: OpenChunk) -> Array:
    """Return the ratio in force of the first input and the rest of the second, frame by frame."""
    stage = chunk.params(MixStage)
    mixed = mix_latents(
        chunk.input_latents(0),
        chunk.input_latents(1),
        _ratios(chunk.timed["ratio"], chunk.frames),
        interpolation=stage.interpolation,
        variance_preserving=stage.variance_preserving,
    )
    return latents_to_array(mixed, chunk.dtype)


def _ratios(ratio: float | Sequence[Sequence[float]], frames: range) -> torch.Tensor:
    """Return the ratio of each frame ``(F,)``: one number, or linear between pairs ``[frame, ratio]``."""
    pairs = [[frames.start, ratio]] if isinstance(ratio, int | float) else ratio
    known, values = zip(*pairs, strict=True)
    return torch.from_numpy(np.interp(list(frames), known, values)).float()
