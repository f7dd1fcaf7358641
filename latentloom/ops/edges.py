"""Edge maps of frames: conditions of ControlNets and T2I-Adapters.

Frame-local. F frames, H x W pixels.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

# On 0..1 intensities: a step below LOW leaves no edge, one above HIGH a full edge. The ceiling hides
# how strong a step is, so that the map tells where things are and not what colour they have.
LOW: Final = 0.06
HIGH: Final = 0.14


def edges(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the edges of frames, as the embedded ControlNet was trained on them.

    The gradient is Sobel's, of the channel that changes most, so that a sprite as bright as its
    background still has an outline.

    Args:
        frames: uint8 `(F, H, W, 3)`.

    Returns:
        float32 `(F, 1, H, W)` in [0, 1].

    Raises:
        ValueError: If the frames have another type or shape.
    """
    _check_frames(frames)
    padded = np.pad(frames, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32) / 255
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    horizontal = (down[:, :, 2:] - down[:, :, :-2]) / 4
    vertical = (across[:, 2:] - across[:, :-2]) / 4
    strength = np.sqrt(horizontal**2 + vertical**2).max(axis=-1)
    strength = np.clip((strength - LOW) / (HIGH - LOW), 0, 1)
    return np.asarray(strength[:, None], np.float32)


def canny(
    frames: NDArray[np.uint8], *, low_threshold: int, high_threshold: int
) -> NDArray[np.float32]:
    """Return the edges of frames that Canny's detector finds, one pixel wide.

    OpenCV's detector on colours, at each pixel those of the channel that changes most, is what the
    authors of ControlNet made their conditions with.

    Args:
        frames: uint8 `(F, H, W, 3)`.
        low_threshold: Gradient (the L1 norm of Sobel's) at which an edge goes on.
        high_threshold: Gradient at which an edge begins.

    Returns:
        float32 `(F, 1, H, W)`, 0 or 1.

    Raises:
        ValueError: If the frames have another type or shape.

    Source: Canny, A Computational Approach to Edge Detection (1986); ControlNet, 2302.05543.
    """
    # Loaded where it is needed: it takes longer than all else here.
    import cv2

    _check_frames(frames)
    cv2.setNumThreads(1)  # the process has its threads from the numerics profile
    found = np.zeros((len(frames), 1, *frames.shape[1:3]), np.float32)
    for frame, into in zip(frames, found, strict=True):
        into[0] = cv2.Canny(np.ascontiguousarray(frame), low_threshold, high_threshold) > 0
    return found


def _check_frames(frames: NDArray[np.uint8]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected uint8 (F, H, W, 3), got {frames.dtype} {frames.shape}")
