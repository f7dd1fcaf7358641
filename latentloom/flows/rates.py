"""How many frames a stage has for each source frame, and what that asks of its inputs and windows.

Chunks are ranges of source frames whatever the rate, so that shots, prompts, redo ranges and keys mean the
same everywhere; see ``docs/decisions/0008-frames-between-frames.md``.
"""

from __future__ import annotations

from collections.abc import Sequence

from latentloom.flows.bound import BoundStage
from latentloom.schemas.stages import (
    DecodeStage,
    InterpolateStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)

FOLLOWERS = (InterpolateStage, UpsampleStage, DecodeStage, UpscaleStage)
"""Stages that may read what has more frames than the source: they look at nothing of the source's."""


def rate_of(stage: Stage, read: Sequence[BoundStage]) -> int:
    """Return the frames of a stage's result for each source frame."""
    rate = max((bound.rate for bound in read), default=1)
    return rate * stage.factor if isinstance(stage, InterpolateStage) else rate


def rate_fault(stage: Stage, read: Sequence[BoundStage]) -> str | None:
    """Say why a stage cannot read what was interpolated; nothing if it can."""
    faster = [bound.name for bound in read if bound.rate > 1]
    if not faster or isinstance(stage, FOLLOWERS):
        return None
    return (
        f"{faster[0]!r} has {max(bound.rate for bound in read)} frames for each of the source's, and only"
        " interpolate, upsample, decode and upscale can follow; edit first, interpolate then"
    )


def whole_frames(length: int, rate: int) -> int:
    """Return the longest window up to a model's length that holds whole source frames; one at least.

    Examples:
        >>> whole_frames(8, 1), whole_frames(10, 4), whole_frames(8, 16)
        (8, 8, 16)
    """
    return max(length // rate, 1) * rate


def default_overlap(size: int, rate: int) -> int:
    """Return a quarter of a window, rounded up to whole source frames, and less than the window.

    Examples:
        >>> default_overlap(16, 1), default_overlap(8, 4), default_overlap(4, 4)
        (4, 4, 0)
    """
    overlap = -(-(size // 4) // rate) * rate
    return overlap if overlap < size else 0


def windows_fault(size: int, overlap: int, rate: int) -> str | None:
    """Say why windows do not fit the rate, if they hold parts of source frames."""
    if size % rate == overlap % rate == 0:
        return None
    return (
        f"windows.size {size} and windows.overlap {overlap} must be multiples of {rate}: after interpolation"
        f" there are {rate} frames for each of the source's"
    )
