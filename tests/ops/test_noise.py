from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.noise import frame_noise

SHAPE = (4, 3, 2)


@given(st.integers(0, 2**63), st.lists(st.integers(0, 10**7), min_size=1, max_size=8))
def test_noise_of_a_frame_does_not_depend_on_its_company(seed: int, frames: list[int]) -> None:
    together = frame_noise(seed, "encode", frames, SHAPE)
    alone = [frame_noise(seed, "encode", [frame], SHAPE) for frame in frames]
    assert torch.equal(together, torch.cat(alone))


def test_frames_seeds_and_streams_differ() -> None:
    noises = [
        frame_noise(seed, stream, [frame], SHAPE)
        for seed in (1, 11)
        for stream in ("a", "1a")
        for frame in (0, 1)
    ]
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 8


def test_noise_is_standard_normal() -> None:
    noise = frame_noise(7, "a", range(16), (4, 32, 32))
    assert noise.dtype == torch.float32
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


def test_noise_is_the_same_for_ever() -> None:
    noise = frame_noise(7, "fuse", [123], (1, 2, 2)).flatten()
    assert torch.allclose(noise, torch.tensor(PINNED), atol=1e-6)


PINNED = [0.60298, 0.268257, 0.728115, 1.497828]
