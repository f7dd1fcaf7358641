from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.ops.microbatch import in_micro_batches

torch.manual_seed(0)
NET = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8), torch.nn.Conv2d(8, 3, 3)
).requires_grad_(False)


@settings(deadline=None)
@given(
    num_frames=st.integers(1, 12),
    size=st.integers(1, 5),
    cuts=st.sets(st.integers(1, 11)),
    channels_last=st.booleans(),
)
def test_slot_neighbours_cuts_and_layout_change_no_bit(
    num_frames: int, size: int, cuts: set[int], channels_last: bool
) -> None:
    frames = torch.randn(num_frames, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    whole = in_micro_batches(NET, size, frames)
    if channels_last:
        frames = frames.to(memory_format=torch.channels_last)
    edges = [0, *sorted(cut for cut in cuts if cut < num_frames), num_frames]
    parts = [in_micro_batches(NET, size, frames[a:b]) for a, b in itertools.pairwise(edges)]
    assert torch.equal(whole, torch.cat(parts))


def test_every_call_has_the_same_size_and_padding_is_dropped() -> None:
    sizes = []

    def record(part: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.append((len(part), len(other)))
        return part + other

    frames = torch.arange(7.0)
    assert torch.equal(in_micro_batches(record, 3, frames, 10 * frames), 11 * frames)
    assert sizes == [(3, 3)] * 3


@pytest.mark.parametrize(("size", "lengths"), [(0, [3]), (2, [0]), (2, [3, 4])])
def test_impossible_cuts_are_refused(size: int, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="micro-batches"):
        in_micro_batches(lambda *parts: parts[0], size, *(torch.zeros(n) for n in lengths))
