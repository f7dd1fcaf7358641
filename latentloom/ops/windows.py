"""Split a frame range into windows. Integers only: planning must not import torch.

Starts lie on multiples of the stride, counted from frame 0 of the source, so that a longer cut keeps the
windows it had; at the ends of a range a window slides inward instead of shrinking.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise

Range = tuple[int, int]


def plan_windows(start: int, stop: int, *, size: int, overlap: int) -> list[Range]:
    """Cover frames ``[start, stop)`` with windows of ``size`` frames.

    Args:
        start: First absolute source frame, at least 0.
        stop: One past the last absolute source frame.
        size: Frames of a window, at least 1.
        overlap: Frames shared by neighbours, ``0 <= overlap < size``.

    Returns:
        Half-open ranges by ascending start. Every frame is covered. A range shorter than ``size`` is one
        short window.

    Raises:
        ValueError: If the numbers contradict one another.

    Examples:
        >>> plan_windows(0, 40, size=16, overlap=4)
        [(0, 16), (12, 28), (24, 40)]
        >>> plan_windows(5, 30, size=16, overlap=4)
        [(5, 21), (12, 28), (14, 30)]
        >>> plan_windows(0, 10, size=16, overlap=4)
        [(0, 10)]
    """
    if not 0 <= start < stop:
        raise ValueError(f"no frames in [{start}, {stop}); start must lie in 0..stop-1")
    if not 0 <= overlap < size:
        raise ValueError(
            f"overlap {overlap} must lie in 0..{size - 1} for windows of {size} frames"
        )
    if stop - start <= size:
        return [(start, stop)]
    stride = size - overlap
    first = -(-start // stride) * stride
    starts = list(range(first, stop - size + 1, stride))
    if first != start:
        starts.insert(0, start)
    if starts[-1] + size < stop:
        starts.append(stop - size)
    return [(a, a + size) for a in starts]


def plan_chunks(start: int, stop: int, *, size: int) -> list[Range]:
    """Cut frames ``[start, stop)`` at multiples of ``size`` counted from frame 0.

    Examples:
        >>> plan_chunks(5, 35, size=16)
        [(5, 16), (16, 32), (32, 35)]
    """
    if not 0 <= start < stop:
        raise ValueError(f"no frames in [{start}, {stop}); start must lie in 0..stop-1")
    if size < 1:
        raise ValueError(f"chunk size {size} must be at least 1")
    cuts = [start, *range((start // size + 1) * size, stop, size), stop]
    return list(pairwise(cuts))


def overlapping(starts: Sequence[int], stops: Sequence[int], start: int, stop: int) -> range:
    """Return the indices of the ranges that share a frame with ``[start, stop)``.

    Args:
        starts: First frames of the ranges, ascending.
        stops: One past their last frames, ascending.
        start: First frame that is asked for.
        stop: One past the last.

    Examples:
        >>> overlapping([0, 12, 24], [16, 28, 40], 14, 26)
        range(0, 3)
    """
    return range(bisect_right(stops, start), bisect_left(starts, stop))
