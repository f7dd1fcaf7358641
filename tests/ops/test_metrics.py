from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentloom.ops.metrics import (
    consecutive_difference,
    flicker,
    frame_consistency,
    psnr,
    seam_score,
    ssim,
    text_alignment,
    warp_error,
)


def video(num_frames: int = 4, size: int = 24) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)


def test_psnr_of_a_known_error_and_of_equal_frames() -> None:
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    other = frames.copy()
    other[0] += 10
    values = psnr(frames, other)
    assert values[0] == pytest.approx(20 * math.log10(25.5))
    assert values[1] == np.inf


def test_masked_psnr_divides_by_the_region() -> None:
    frames, mask = np.full((1, 8, 8, 3), 100, np.uint8), np.zeros((1, 8, 8), bool)
    other = frames.copy()
    mask[0, :2], other[0, :2], other[0, 2:] = True, 110, 200
    assert psnr(frames, other, mask=mask)[0] == pytest.approx(20 * math.log10(25.5))
    assert np.isnan(psnr(frames, other, mask=~mask & mask)[0])


def oracle_ssim(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Score every 11 x 11 window by the definition, slowly."""
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps = np.outer(axis, axis)[:, :, None] / axis.sum() ** 2
    scores = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (z[row : row + 11, column : column + 11].astype(float) for z in (x, y))
            mean_a, mean_b = (taps * a).sum((0, 1)), (taps * b).sum((0, 1))
            var_a = (taps * (a - mean_a) ** 2).sum((0, 1))
            var_b = (taps * (b - mean_b) ** 2).sum((0, 1))
            cov = (taps * (a - mean_a) * (b - mean_b)).sum((0, 1))
            c1, c2 = 2.55**2, 7.65**2
            top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
            scores.append(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    return float(np.mean(scores))


def test_ssim_is_its_definition() -> None:
    frames = video(2, 14)
    other = np.clip(frames.astype(int) + 20 - frames // 5, 0, 255).astype(np.uint8)
    wanted = [oracle_ssim(a, b) for a, b in zip(frames, other, strict=True)]
    assert ssim(frames, other) == pytest.approx(wanted, abs=1e-9)
    assert ssim(frames, frames) == pytest.approx([1, 1])


def test_flicker_is_the_mean_change_and_pairs_go_chunk_by_chunk() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1] = 255
    assert consecutive_difference(frames).tolist() == [255, 255]
    assert flicker(frames) == 255
    assert flicker(frames[:1]) == 0
    frames = video(6)
    parts = [consecutive_difference(frames[:4]), consecutive_difference(frames[3:])]
    assert np.array_equal(np.concatenate(parts), consecutive_difference(frames))


def test_seam_score_is_one_without_a_seam_and_grows_with_it() -> None:
    source = np.array([1.0, 1.0, 3.0, 1.0, 1.0])
    assert seam_score(2 * source, source, [3]) == pytest.approx(1)
    output = source.copy()
    output[2] = 6
    assert seam_score(output, source, [3]) == pytest.approx(2)
    assert math.isnan(seam_score(output, source, []))
    with pytest.raises(ValueError, match=r"joins \[6\]"):
        seam_score(output, source, [6])


def moved(dx: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    wide = video(1, 40)[0]
    frames = np.stack([wide[:24, 8 : 8 + 24], wide[:24, 8 - dx : 8 - dx + 24]])
    flow = np.zeros((1, 24, 24, 2), np.float32)
    flow[..., 0] = dx
    return frames, flow, -flow


def test_warp_error_of_a_pure_motion_is_zero() -> None:
    frames, forward, backward = moved(3)
    assert warp_error(frames, forward, backward).tolist() == [0]
    assert warp_error(frames, 0 * forward, 0 * backward)[0] > 1000


def test_pixels_that_one_frame_hides_do_not_count() -> None:
    frames, forward, backward = moved(3)
    frames = frames.copy()
    frames[1, 5:8, 10:13] = 0
    assert warp_error(frames, forward, backward)[0] > 0
    backward = backward.copy()
    backward[0, 5:8, 10:13] = 20
    assert warp_error(frames, forward, backward).tolist() == [0]
    assert np.isnan(warp_error(frames, forward, backward + 50)[0])


def test_warping_is_bilinear() -> None:
    ramp = np.broadcast_to(np.arange(8.0)[None, None, :, None], (2, 8, 8, 3)).copy()
    ramp[1] -= 0.5
    flow = np.zeros((1, 8, 8, 2))
    flow[..., 0] = 0.5
    assert warp_error(ramp, flow, -flow)[0] == pytest.approx(0)


def test_shapes_must_agree() -> None:
    frames = video()
    with pytest.raises(ValueError, match="cannot compare"):
        psnr(frames, frames[:2])
    with pytest.raises(ValueError, match="above 10 pixels"):
        ssim(frames[:, :8], frames[:, :8])
    with pytest.raises(ValueError, match="should both be"):
        warp_error(frames, np.zeros((4, 24, 24, 2)), np.zeros((4, 24, 24, 2)))


def test_alignment_and_consistency_are_mean_cosines() -> None:
    frames = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
    assert text_alignment(frames, np.array([1.0, 0.0])) == pytest.approx(100 * 1.6 / 3)
    every, neighbours = frame_consistency(frames)
    assert every == pytest.approx((0.6 + 0.0 + 0.8) / 3)
    assert neighbours == pytest.approx((0.6 + 0.8) / 2)
    assert all(math.isnan(value) for value in frame_consistency(frames[:1]))
