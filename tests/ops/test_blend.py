from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latentloom.ops.blend import WeightShape, blend, window_weights

SHAPES: list[WeightShape] = ["flat", "pyramid", "linear"]


def windows(stop: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Return windows that cover 0..stop, the last one slid inward."""
    starts = list(range(0, max(stop - size, 0) + 1, size - overlap))
    if starts[-1] + size < stop:
        starts.append(stop - size)
    return [(a, min(a + size, stop)) for a in starts]


def cut(video: NDArray[Any], spans: list[tuple[int, int]]) -> list[tuple[int, NDArray[Any]]]:
    return [(a, video[a:b]) for a, b in spans]


rules = st.integers(1, 9).flatmap(
    lambda size: st.tuples(st.integers(1, 30), st.just(size), st.integers(0, size - 1))
)


@given(rule=rules, shape=st.sampled_from(SHAPES))
def test_windows_that_agree_blend_to_the_same_video(
    rule: tuple[int, int, int], shape: WeightShape
) -> None:
    stop, size, overlap = rule
    video = np.random.default_rng(0).normal(size=(stop, 2, 3)).astype(np.float32)
    spans = windows(stop, size, overlap)
    whole = blend(cut(video, spans), 0, stop, overlap=overlap, shape=shape)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, video, atol=1e-6)
    for frame in range(stop):
        if sum(a <= frame < b for a, b in spans) == 1:
            assert np.array_equal(whole[frame], video[frame])


@given(rule=rules, shape=st.sampled_from(SHAPES), data=st.data())
def test_a_frame_does_not_depend_on_the_range_asked_for(
    rule: tuple[int, int, int], shape: WeightShape, data: st.DataObject
) -> None:
    stop, _, overlap = rule
    rng = np.random.default_rng(0)
    parts = [(a, rng.normal(size=(b - a, 2)).astype(np.float32)) for a, b in windows(*rule)]
    whole = blend(parts, 0, stop, overlap=overlap, shape=shape)
    a = data.draw(st.integers(0, stop - 1))
    b = data.draw(st.integers(a + 1, stop))
    near = [part for part in parts if part[0] < b and part[0] + len(part[1]) > a]
    some = blend(list(reversed(near)), a, b, overlap=overlap, shape=shape)
    assert np.array_equal(some, whole[a:b])


def test_linear_weights_cross_fade_two_windows() -> None:
    parts = [(0, np.zeros((8, 1))), (5, np.ones((8, 1)))]
    faded = blend(parts, 0, 13, overlap=3)
    np.testing.assert_allclose(faded[:, 0], [0] * 5 + [0.25, 0.5, 0.75] + [1] * 5)
    flat = blend(parts, 0, 13, overlap=3, shape="flat")
    np.testing.assert_allclose(flat[5:8, 0], 0.5)


def test_weights_are_symmetric_and_positive() -> None:
    for shape in SHAPES:
        for length in range(1, 9):
            weights = window_weights(length, length // 2, shape)
            assert weights.min() > 0
            assert np.array_equal(weights, weights[::-1])


def test_frames_without_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[\(0, 4\), \(6, 8\)\] do not cover frames 0\.\.8"):
        blend([(0, np.zeros((4, 1))), (6, np.zeros((2, 1)))], 0, 8, overlap=0)
    with pytest.raises(ValueError, match="overlap by 5"):
        window_weights(4, 5)
