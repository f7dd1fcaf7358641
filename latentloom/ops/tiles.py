"""Run a function over large frames tile by tile, neighbours cross-faded where they overlap.

F frames, c channels, h x w latent pixels, whatever the function reads and makes: that is ``scale`` times as
large. The grid follows from h and w alone, so a frame's result depends on that frame alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from latentloom.ops.blend import window_weights
from latentloom.ops.windows import Range, plan_windows


def in_tiles(
    function: Callable[..., torch.Tensor],
    *tensors: torch.Tensor,
    size: int,
    overlap: int,
    scale_in: int = 1,
    scale_out: int = 1,
) -> torch.Tensor:
    """Apply a function to tiles, and blend what it makes of them.

    Every pixel is a weighted mean of the tiles that hold it. Weights rise over the overlap, slowly at first:
    a tile's rim lacks the neighbours that a convolution asks for. What one tile alone covers is that
    tile's, to the bit.

    Args:
        function: Takes one tile of each tensor, `(F, c, s * scale_in, s * scale_in)`, and returns
            `(F, c', s * scale_out, s * scale_out)`.
        tensors: Any number of `(F, c, h * scale_in, w * scale_in)`, cut alike.
        size: Side s of a tile in latent pixels; a frame that is smaller along a side is one tile there.
        overlap: Latent pixels that neighbours share, below `size`.
        scale_in: Pixels of the tensors along a latent pixel.
        scale_out: Pixels of the result along a latent pixel.

    Returns:
        `(F, c', h * scale_out, w * scale_out)`.

    Raises:
        ValueError: If the overlap is not smaller than the size.

    Source: MultiDiffusion (2302.08113), equation 5, where the function predicts noise: a DDIM step is linear
        in it, so that the mean of predictions at one z is the mean of the steps taken from there.
    """
    height, width = (side // scale_in for side in tensors[0].shape[-2:])
    rows = _weighted(height, size, overlap, scale_out)
    columns = _weighted(width, size, overlap, scale_out)
    total: torch.Tensor | None = None
    for (top, bottom), down in rows:
        for (left, right), across in columns:
            tile = (
                ...,
                slice(top * scale_in, bottom * scale_in),
                slice(left * scale_in, right * scale_in),
            )
            made = function(*(tensor[tile].contiguous() for tensor in tensors))
            if total is None:
                shape = (*made.shape[:-2], height * scale_out, width * scale_out)
                total = made.new_zeros(shape)
            weights = torch.outer(down, across).to(made.device, made.dtype)
            total[
                ...,
                top * scale_out : bottom * scale_out,
                left * scale_out : right * scale_out,
            ] += made * weights
    assert total is not None
    return total


def _weighted(length: int, size: int, overlap: int, scale: int) -> list[tuple[Range, torch.Tensor]]:
    """Return the tiles along a side and the weight of each of their pixels; at any pixel together 1."""
    tiles = plan_windows(0, length, size=size, overlap=overlap)
    weights = [window_weights((b - a) * scale, min(overlap, b - a) * scale) ** 2 for a, b in tiles]
    total = np.zeros(length * scale, np.float64)
    for (a, b), weight in zip(tiles, weights, strict=True):
        total[a * scale : b * scale] += weight
    return [
        ((a, b), torch.from_numpy((weight / total[a * scale : b * scale]).astype(np.float32)))
        for (a, b), weight in zip(tiles, weights, strict=True)
    ]
