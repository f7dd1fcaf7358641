from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.interpolate import cosine, lerp, mix, mixed_spread, slerp


def pair(num_frames: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, num_frames, 4, 8, 8, generator=generator)
    return first, second


def unit(z: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(z.flatten(1), dim=1).view_as(z)


def test_both_meet_their_ends() -> None:
    first, second = pair()
    for function in (lerp, slerp):
        assert torch.allclose(function(first, second, 0.0), first, atol=1e-6)
        assert torch.allclose(function(first, second, 1.0), second, atol=1e-6)


@given(t=st.floats(0, 1), seed=st.integers(0, 100))
def test_slerp_of_unit_latents_has_unit_norm_and_turns_evenly(t: float, seed: int) -> None:
    first, second = (unit(z) for z in pair(seed=seed))
    between = slerp(first, second, t)
    assert torch.allclose(between.flatten(1).norm(dim=1), torch.ones(3), atol=1e-5)
    angle = torch.acos(cosine(first, second).double())
    assert torch.allclose(torch.acos(cosine(first, between).double()), t * angle, atol=2e-3)


def test_slerp_is_the_formula() -> None:
    first, second = pair(1)
    theta = math.acos(float(cosine(first, second)))
    wanted = (
        math.sin(0.7 * theta) / math.sin(theta) * first
        + math.sin(0.3 * theta) / math.sin(theta) * second
    )
    assert torch.allclose(slerp(first, second, 0.3), wanted, atol=1e-5)


def test_slerp_is_per_frame() -> None:
    first, second = pair(5)
    whole = slerp(first, second, 0.3)
    assert torch.equal(whole[2:4], slerp(first[2:4], second[2:4], 0.3))
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    each = torch.cat([slerp(first[i : i + 1], second[i : i + 1], float(t[i])) for i in range(5)])
    assert torch.allclose(slerp(first, second, t), each, atol=1e-6)


def test_slerp_of_parallel_and_zero_latents_is_linear() -> None:
    first, _ = pair()
    for second in (first, 2 * first, torch.zeros_like(first)):
        assert torch.allclose(slerp(first, second, 0.25), lerp(first, second, 0.25), atol=1e-5)


def test_slerp_between_opposites_is_refused_and_names_the_slot() -> None:
    first, second = pair()
    second[1] = -3 * first[1]
    with pytest.raises(ValueError, match=r"slots \[1\]"):
        slerp(first, second, 0.5)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot interpolate"):
        lerp(torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 8, 8), 0.5)


def test_ratio_is_the_weight_of_the_first_inversion() -> None:
    image, video = pair()
    assert torch.allclose(mix(image, video, 0.25), 0.25 * image + 0.75 * video, atol=1e-6)
    for combine in (
        mix,
        functools.partial(mix, interpolation="slerp"),
        functools.partial(mix, variance_preserving=True),
    ):
        assert torch.allclose(combine(image, video, 1.0), image, atol=1e-5)
        assert torch.allclose(combine(image, video, 0.0), video, atol=1e-5)
    with pytest.raises(ValueError, match=r"ratio 1\.5"):
        mix(image, video, 1.5)
    with pytest.raises(ValueError, match=r"ratio \[0\.5, -1\.0"):
        mix(image, video, torch.tensor([0.5, -1.0, 0.5]))


@pytest.mark.parametrize("options", [{}, {"interpolation": "slerp"}, {"variance_preserving": True}])
def test_each_frame_may_have_a_ratio_of_its_own(options: dict[str, Any]) -> None:
    image, video = pair()
    ratios = [0.0, 0.3, 1.0]
    frames = [
        mix(image[i : i + 1], video[i : i + 1], ratio, **options) for i, ratio in enumerate(ratios)
    ]
    mixed = mix(image, video, torch.tensor(ratios), **options)
    assert torch.allclose(mixed, torch.cat(frames), atol=1e-6)


def test_plain_mix_of_independent_noise_loses_spread_and_the_other_keeps_it() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 4, 64, 64, generator=generator)
    assert float(mix(first, second, 0.5).std()) == pytest.approx(0.71, abs=0.01)
    kept = mix(first, second, 0.5, variance_preserving=True)
    assert float(kept.std()) == pytest.approx(1.0, abs=0.01)


@given(a=st.floats(0, 1), seed=st.integers(0, 20))
def test_spread_is_the_published_formula(a: float, seed: int) -> None:
    first, second = pair(1, seed)
    rho = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    wanted = math.sqrt(a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * float(rho))
    assert float(mixed_spread([first, second], [a, 1 - a])) == pytest.approx(wanted, abs=1e-5)
