"""What is exactly true of a rendered clip: masks, attributes, optical flow.

Shapes: F frames, H = W = size, S sprites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentloom.sprites.render import FPS, SIZE, cover
from latentloom.sprites.scene import Scene

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Truth:
    """The truth of every frame of a clip."""

    masks: NDArray[np.bool_]
    """`(S, F, H, W)`: the pixels in which a sprite is what is seen, hidden parts left out."""
    centres: Float
    """`(S, F, 2)`: x and y of each sprite's centre, in pixels."""
    flow: Float
    """`(F - 1, H, W, 2)`: how far what a pixel of frame k shows moves until frame k + 1, in pixels."""

    @property
    def mask(self) -> NDArray[np.bool_]:
        """`(F, H, W)`: the pixels in which any sprite is seen."""
        return np.asarray(self.masks.any(axis=0))


def tell_truth(
    scene: Scene, num_frames: int, size: int = SIZE, fps: float = FPS, *, start: int = 0
) -> Truth:
    """Return the truth of the frames that `render` draws for the same arguments."""
    seconds = [(start + k) / fps for k in range(num_frames)]
    num = len(scene.sprites)
    masks = np.zeros((num, num_frames, size, size), bool)
    centres = np.zeros((num, num_frames, 2), np.float32)
    flow = np.zeros((max(num_frames - 1, 0), size, size, 2), np.float32)
    for index, sprite in enumerate(scene.sprites):
        centres[index] = [[size * v for v in sprite.position(t)] for t in seconds]
        masks[index] = cover(sprite, seconds, size) >= 0.5
        masks[:index] &= ~masks[index]
    for index in range(num):
        step = np.diff(centres[index], axis=0)[:, None, None, :]
        flow = np.where(masks[index, :-1, :, :, None], step, flow)
    return Truth(masks, centres, flow.astype(np.float32))
