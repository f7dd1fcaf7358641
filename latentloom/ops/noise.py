"""Draw noise that belongs to a frame, whatever chunk, worker or run asks for it.

F frames, C channels, h x w latent pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch


def frame_noise(
    seed: int, stream: str, frames: Sequence[int], shape: tuple[int, int, int]
) -> torch.Tensor:
    """Draw standard normal noise for absolute source frames.

    Each frame has a generator of its own: one shared by frames would make a frame's noise depend on
    where a chunk begins.

    Args:
        seed: The recipe's seed.
        stream: Name of the stream; two stages that must not share noise use two names.
        frames: Absolute source frame numbers.
        shape: `(C, h, w)` of one frame.

    Returns:
        float32 `(F, C, h, w)` on the CPU.
    """
    noise = torch.empty(len(frames), *shape)
    for slot, frame in enumerate(frames):
        noise[slot] = torch.randn(shape, generator=frame_generator(seed, stream, frame))
    return noise


def frame_generator(seed: int, stream: str, frame: int) -> torch.Generator:
    """Return the generator that a frame's noise is drawn from, fresh."""
    digest = hashlib.sha256(json.dumps([int(seed), stream, int(frame)]).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
