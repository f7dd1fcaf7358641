"""Blend overlapping windows of one stream. numpy only.

L frames in a window. Noise is never blended: the average of two windows' noise has a std of 0.71.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

WeightShape = Literal["flat", "pyramid", "linear"]


def window_weights(length: int, overlap: int, shape: WeightShape = "linear") -> NDArray[np.float32]:
    """Return how much each frame of a window counts where windows overlap.

    Args:
        length: L.
        overlap: Frames shared with a neighbour, 0 to L.
        shape: `flat` counts all alike; `pyramid` rises to the middle of the window; `linear` rises
            over the overlap only, which makes a plain cross-fade of two neighbours.

    Returns:
        float32 `(L,)`, each above 0.

    Raises:
        ValueError: If the length is below 1 or the overlap outside 0..L.

    Example:
        >>> window_weights(5, 1, "pyramid").tolist()
        [1.0, 2.0, 3.0, 2.0, 1.0]
        >>> window_weights(6, 1).tolist()
        [0.5, 1.0, 1.0, 1.0, 1.0, 0.5]
    """
    if length < 1 or not 0 <= overlap <= length:
        raise ValueError(f"no weights for a window of {length} frames that overlap by {overlap}")
    to_edge = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)
    if shape == "flat":
        return np.ones(length, np.float32)
    if shape == "pyramid":
        return to_edge
    return (to_edge / np.float32(overlap + 1)).clip(max=1).astype(np.float32, copy=False)


def blend(
    parts: Sequence[tuple[int, NDArray[np.floating]]],
    start: int,
    stop: int,
    *,
    overlap: int,
    shape: WeightShape = "linear",
) -> NDArray[np.float32]:
    """Average overlapping windows over a range of frames.

    A frame that one window alone covers is that window's, to the bit. The result for a frame does
    not depend on the range asked for, provided that all windows which hold the frame are given.

    Args:
        parts: `(first frame, array (L, ...))` of each window, in any order.
        start: First frame wanted.
        stop: Frame after the last one wanted.
        overlap: Frames shared by neighbours, as the window rule says.
        shape: See `window_weights`.

    Returns:
        float32 `(stop - start, ...)`.

    Raises:
        ValueError: If a frame is covered by no window.
    """
    ordered = sorted(parts, key=lambda part: part[0])
    covered = [(a, a + len(array)) for a, array in ordered]
    counts = np.zeros(stop - start, np.int64)
    for a, b in covered:
        counts[max(a, start) - start : max(b, start) - start] += 1
    if stop <= start or not counts.all():
        raise ValueError(f"windows {covered} do not cover frames {start}..{stop}")
    item_shape = ordered[0][1].shape[1:]
    total = np.zeros((stop - start, *item_shape), np.float32)
    weight_sum = np.zeros((stop - start, *[1] * len(item_shape)), np.float32)
    for first, array in ordered:
        a, b = max(first, start), min(first + len(array), stop)
        if a >= b:
            continue
        weights = window_weights(len(array), min(overlap, len(array)), shape)[a - first : b - first]
        # Where a window is alone its weight is 1, so that nothing is rounded.
        weights = np.where(counts[a - start : b - start] == 1, np.float32(1), weights)
        weights = weights.reshape(-1, *[1] * len(item_shape))
        total[a - start : b - start] += weights * array[a - first : b - first]
        weight_sum[a - start : b - start] += weights
    return (total / weight_sum).astype(np.float32, copy=False)
