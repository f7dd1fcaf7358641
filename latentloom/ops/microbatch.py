"""Run a frame-local function in calls of one fixed size.

A float32 model gives other last bits for another batch size, but within one size a slot and its
neighbours do not matter. So every call is padded to the same size, and any chunking gives the same
bytes. Memory layout matters too (channels-last tensors take other kernels), so it is fixed as well.
F frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def in_micro_batches(
    function: Callable[..., torch.Tensor], size: int, *tensors: torch.Tensor
) -> torch.Tensor:
    """Apply a function to frames, `size` frames a call, the last call padded with its last frame.

    Args:
        function: Takes one part of each tensor, `(size, ...)`, and returns `(size, ...)`.
        size: Frames in a call; part of the numerics profile.
        tensors: Any number of `(F, ...)`, cut alike.

    Returns:
        `(F, ...)`.

    Raises:
        ValueError: If the size is below 1, there is no frame, or the tensors differ in length.
    """
    lengths = {len(tensor) for tensor in tensors}
    if size < 1 or len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"cannot cut lengths {sorted(lengths)} into micro-batches of {size}")
    num_frames = lengths.pop()
    results = []
    for start in range(0, num_frames, size):
        kept = min(size, num_frames - start)
        parts = [_padded(tensor[start : start + kept], size) for tensor in tensors]
        results.append(function(*parts)[:kept])
    return torch.cat(results)


def _padded(part: torch.Tensor, size: int) -> torch.Tensor:
    missing = size - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]).contiguous()
