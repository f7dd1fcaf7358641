"""Edge maps: what they find, and that a frame's map depends on no other frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentloom.ops.edges import canny, edges

Detector = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def default_canny(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    return canny(frames, low_threshold=100, high_threshold=200)


def square(height: int = 16, width: int = 20) -> NDArray[np.uint8]:
    """Return a frame with a red square on black, between rows and columns 4 and 10."""
    frame = np.zeros((1, height, width, 3), np.uint8)
    frame[:, 4:10, 4:10, 0] = 255
    return frame


def test_canny_is_opencvs_of_each_frame_in_colour() -> None:
    grid = np.mgrid[:3, :24, :32].transpose(1, 2, 3, 0)
    frames = (127 * np.sin(grid * [0.9, 1.1, 1.3]) + 128).astype(np.uint8)
    found = canny(frames, low_threshold=40, high_threshold=150)
    expected = np.stack([cv2.Canny(frame, 40, 150) for frame in frames])[:, None]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected / np.float32(255))
    assert 0.05 < found.mean() < 0.95


@pytest.mark.parametrize("detector", [edges, default_canny])
def test_outline_is_found_and_nothing_in_or_around_it(detector: Detector) -> None:
    found = detector(square())[0, 0]
    assert found.shape == (16, 20)
    assert set(np.unique(found)) == {0.0, 1.0}
    assert found[6, 2:6].any()
    assert not found[6:8, 6:8].any()
    assert not found[:2].any()


def test_low_threshold_lets_edges_go_on_and_high_threshold_begins_them() -> None:
    fading = np.zeros((1, 32, 16, 3), np.uint8)
    fading[0, :, 8:] = np.linspace(60, 0, 32, dtype=np.uint8)[:, None, None]
    lengths = [
        canny(fading, low_threshold=low, high_threshold=high).sum()
        for low, high in ((100, 200), (40, 200), (100, 1000))
    ]
    assert 0 == lengths[2] < lengths[0] < lengths[1]


@given(cuts=st.sets(st.integers(1, 5)), seed=st.integers(0, 99))
def test_any_chunking_gives_the_same_maps(cuts: set[int], seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (6, 8, 9, 3), np.uint8)
    parts = [default_canny(part) for part in np.split(frames, sorted(cuts))]
    assert np.array_equal(np.concatenate(parts), default_canny(frames))


@pytest.mark.parametrize("detector", [edges, default_canny])
def test_frames_of_another_type_or_shape_are_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \(F, H, W, 3\), got uint8 \(16, 20, 3\)"):
        detector(square()[0])
    with pytest.raises(ValueError, match="got float64"):
        detector(cast(Any, square() / 255))
