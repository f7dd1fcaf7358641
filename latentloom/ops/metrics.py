"""Measure videos, a frame or a pair of frames at a time, so that a chunk is enough. numpy only.

F frames, H x W pixels, frames `(F, H, W, 3)` in 0..peak.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[Any]
Numbers = NDArray[np.float64]

# The window and constants of Wang et al. 2004.
_SIGMA: Final = 1.5
_RADIUS: Final = 5
_K1: Final = 0.01
_K2: Final = 0.03


def psnr(
    frames: Frames, reference: Frames, *, peak: float = 255, mask: NDArray[np.bool_] | None = None
) -> Numbers:
    """Return the peak signal-to-noise ratio of each frame in dB, infinite where it is equal.

    Args:
        frames: `(F, H, W, 3)`.
        reference: `(F, H, W, 3)`.
        peak: The largest value.
        mask: `(F, H, W)`, the pixels that count; by default all. NaN for a frame without any.

    Raises:
        ValueError: If the shapes differ.
    """
    error = np.square(_difference(frames, reference)).mean(axis=-1)
    inside = np.ones(error.shape, bool) if mask is None else mask
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = (error * inside).sum(axis=(1, 2)) / inside.sum(axis=(1, 2))
        decibels: Numbers = 10 * np.log10(peak**2 / mean)
    return decibels


def ssim(frames: Frames, reference: Frames, *, peak: float = 255) -> Numbers:
    """Return the structural similarity of each frame, at most 1, the mean over its channels.

    Args:
        frames: `(F, H, W, 3)`, at least 11 pixels a side.
        reference: `(F, H, W, 3)`.
        peak: The largest value.

    Raises:
        ValueError: If the shapes differ or the frames are too small.

    Source: Wang et al., Image quality assessment, 2004, with their 11 x 11 window, valid part.
    """
    if min(frames.shape[1:3]) <= 2 * _RADIUS or frames.shape != reference.shape:
        raise ValueError(
            f"SSIM needs equal frames above 10 pixels: {frames.shape}, {reference.shape}"
        )
    scores = [_ssim_of_frame(a, b, peak) for a, b in zip(frames, reference, strict=True)]
    return np.array(scores, np.float64)


def consecutive_difference(frames: Frames) -> Numbers:
    """Return the mean absolute difference between each frame and the next, `(F - 1,)`.

    Consecutive chunks need one frame in common.
    """
    differences: Numbers = np.abs(_difference(frames[:-1], frames[1:])).mean(axis=(1, 2, 3))
    return differences


def flicker(frames: Frames) -> float:
    """Return `mean |I_t - I_t+1|`; 0 for a single frame."""
    differences = consecutive_difference(frames)
    return float(differences.mean()) if len(differences) else 0.0


def seam_score(output: Numbers, source: Numbers, joins: Collection[int]) -> float:
    """Return how much more the output changes at window joins than the source does; 1 is seamless.

    Args:
        output: `consecutive_difference` of the output, `(F - 1,)`.
        source: `consecutive_difference` of the source, `(F - 1,)`.
        joins: First frames of the windows after the first one, 1 to F - 1.

    Returns:
        (at joins / elsewhere, of the output) / (the same of the source); NaN without joins.

    Raises:
        ValueError: If the lengths differ or a join is not within 1..F-1.
    """
    if output.shape != source.shape or any(not 1 <= join <= len(output) for join in joins):
        raise ValueError(f"joins {sorted(joins)} do not fit {len(output)} and {len(source)} pairs")
    at_join = np.isin(np.arange(1, len(output) + 1), list(joins))
    if at_join.all() or not at_join.any():
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        ours, theirs = (d[at_join].mean() / d[~at_join].mean() for d in (output, source))
        return float(ours / theirs)


def text_alignment(frames: NDArray[np.floating], text: NDArray[np.floating]) -> float:
    """Return the mean cosine of frames and a text, times 100.

    Args:
        frames: Embeddings `(F, D)` of unit length.
        text: The text's, `(D,)`.

    Source: the TGVE benchmark (2310.16003), with any contrastive model's embeddings.
    """
    return float(100 * (frames @ text).mean())


def frame_consistency(frames: NDArray[np.floating]) -> tuple[float, float]:
    """Return the mean cosine over all pairs of different frames, and over neighbours.

    Args:
        frames: Embeddings `(F, D)` of unit length.

    Returns:
        Two numbers up to 1; NaN for a single frame.

    Source: the TGVE benchmark (2310.16003).
    """
    if len(frames) < 2:
        return float("nan"), float("nan")
    cosines = frames @ frames.T
    pairs = cosines[np.triu_indices(len(frames), k=1)]
    return float(pairs.mean()), float(np.diagonal(cosines, offset=1).mean())


def warp_error(
    frames: Frames, forward: NDArray[np.floating], backward: NDArray[np.floating]
) -> Numbers:
    """Return the mean of `(warp(I_t+1) - I_t)^2` over the pixels that both frames show.

    Args:
        frames: `(F, H, W, 3)`.
        forward: Flow of the source video from t to t + 1 in pixels, `(F - 1, H, W, 2)`, x before y.
        backward: Flow from t + 1 to t.

    Returns:
        `(F - 1,)`, in squared units of the frames; NaN where all is occluded.

    Raises:
        ValueError: If the shapes do not fit.

    Source: Ruder et al. 2016 (1604.08610), occluded where
        `|fw + bw|^2 > 0.01 (|fw|^2 + |bw|^2) + 0.5`; pixels that leave the frame count as occluded.
    """
    wanted = (len(frames) - 1, *frames.shape[1:3], 2)
    if forward.shape != wanted or backward.shape != wanted:
        raise ValueError(f"flows {forward.shape}, {backward.shape} should both be {wanted}")
    pairs = zip(frames[:-1], frames[1:], forward, backward, strict=True)
    return np.array([_warp_error_of_pair(*pair) for pair in pairs], np.float64)


def _difference(first: Frames, second: Frames) -> Numbers:
    if first.shape != second.shape or first.ndim != 4:
        raise ValueError(f"cannot compare frames {first.shape} and {second.shape}")
    return first.astype(np.float64) - second.astype(np.float64)


def _ssim_of_frame(frame: Frames, reference: Frames, peak: float) -> float:
    x, y = frame.astype(np.float64), reference.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x, var_y = _smooth(x * x) - mean_x**2, _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * peak) ** 2, (_K2 * peak) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float((luminance * structure).mean())


def _smooth(image: Numbers) -> Numbers:
    """Filter `(H, W, 3)` with the Gaussian window, the valid part only."""
    taps = np.exp(-0.5 * (np.arange(-_RADIUS, _RADIUS + 1) / _SIGMA) ** 2)
    taps /= taps.sum()
    views = np.lib.stride_tricks.sliding_window_view(image, len(taps), axis=0) @ taps
    smoothed: Numbers = np.lib.stride_tricks.sliding_window_view(views, len(taps), axis=1) @ taps
    return smoothed


def _warp_error_of_pair(
    frame: Frames,
    following: Frames,
    forward: NDArray[np.floating],
    backward: NDArray[np.floating],
) -> float:
    warped, inside = _sampled(following, forward)
    back, _ = _sampled(backward, forward)
    squares = (np.square(flow, dtype=np.float64).sum(-1) for flow in (forward, back))
    occluded = np.square(forward + back).sum(-1) > 0.01 * sum(squares) + 0.5
    visible = inside & ~occluded
    if not visible.any():
        return float("nan")
    return float(np.square(warped - frame)[visible].mean())


def _sampled(image: Frames, flow: NDArray[np.floating]) -> tuple[Numbers, NDArray[np.bool_]]:
    """Read an image at where the flow points, bilinearly, and say which points lie inside."""
    height, width = image.shape[:2]
    grid_y, grid_x = np.mgrid[:height, :width]
    x, y = grid_x + flow[..., 0].astype(np.float64), grid_y + flow[..., 1].astype(np.float64)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    left = np.clip(np.floor(x), 0, max(width - 2, 0)).astype(int)
    top = np.clip(np.floor(y), 0, max(height - 2, 0)).astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across = np.clip(x - left, 0, 1)[..., None]
    down = np.clip(y - top, 0, 1)[..., None]
    values = image.astype(np.float64)
    upper = (1 - across) * values[top, left] + across * values[top, right]
    lower = (1 - across) * values[bottom, left] + across * values[bottom, right]
    return (1 - down) * upper + down * lower, inside
