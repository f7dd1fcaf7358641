from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.ops.tiles import in_tiles


@settings(deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 16),
    overlap=st.integers(0, 15),
)
def test_what_is_pixelwise_comes_out_as_without_tiles(
    height: int, width: int, size: int, overlap: int
) -> None:
    frames = torch.rand(2, 3, height, width)
    found = in_tiles(lambda tile: 2 * tile, frames, size=size, overlap=min(overlap, size - 1))
    torch.testing.assert_close(found, 2 * frames)


def test_a_frame_that_fits_is_one_call_to_the_bit() -> None:
    frames, calls = torch.rand(1, 2, 8, 6), []

    def function(tile: torch.Tensor) -> torch.Tensor:
        calls.append(tile.shape)
        return tile.softmax(-1)

    assert torch.equal(in_tiles(function, frames, size=8, overlap=2), frames.softmax(-1))
    assert len(calls) == 1


def test_all_tiles_are_of_one_shape_and_fade_from_one_to_the_next() -> None:
    shapes, numbers = set(), iter(range(9))

    def number(tile: torch.Tensor) -> torch.Tensor:
        shapes.add(tile.shape)
        return torch.full_like(tile, float(next(numbers)))

    row = in_tiles(number, torch.zeros(1, 1, 1, 10), size=6, overlap=2)
    assert shapes == {(1, 1, 1, 6)}
    expected = [0, 0, 0, 0, 1 / 5, 4 / 5, 1, 1, 1, 1]
    torch.testing.assert_close(row.flatten(), torch.tensor(expected))


@pytest.mark.parametrize(("scale_in", "scale_out"), [(4, 1), (1, 4)])
def test_scales_shrink_and_grow(scale_in: int, scale_out: int) -> None:
    frames = torch.rand(1, 3, 12 * scale_in, 20 * scale_in)

    def resized(tile: torch.Tensor) -> torch.Tensor:
        if scale_in > 1:
            return torch.nn.functional.avg_pool2d(tile, scale_in)
        return tile.repeat_interleave(scale_out, -1).repeat_interleave(scale_out, -2)

    found = in_tiles(resized, frames, size=8, overlap=2, scale_in=scale_in, scale_out=scale_out)
    torch.testing.assert_close(found, resized(frames))


def test_tensors_are_cut_alike() -> None:
    first, second = torch.rand(2, 1, 9, 9), torch.rand(2, 5, 9, 9)
    found = in_tiles(lambda a, b: a + b.sum(1, keepdim=True), first, second, size=4, overlap=1)
    torch.testing.assert_close(found, first + second.sum(1, keepdim=True))


def test_overlap_as_large_as_a_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="overlap 4"):
        in_tiles(torch.clone, torch.rand(1, 1, 9, 9), size=4, overlap=4)
