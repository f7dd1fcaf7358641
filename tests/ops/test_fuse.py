from __future__ import annotations

import functools
import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.fuse import (
    Space,
    alpha_schedule,
    fuse,
    fuse_denoise,
    similarity,
    weight_schedule,
)
from latentloom.ops.interpolate import slerp
from latentloom.ops.sampling import Predict


def noise(num: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(num, 3, 4, 8, 8, generator=generator))


class Schedule:
    """DDIM written out; timestep i is step i, abar rises evenly."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.timesteps = tuple(range(num_steps))

    def alpha_bar(self, i: int) -> float:
        return (i + 1) / (self.num_steps + 1)

    def step(self, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        now, then = self.alpha_bar(i), self.alpha_bar(i + 1)
        clean = (z - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(then) * clean + math.sqrt(1 - then) * eps

    def inverse_step(self, eps: torch.Tensor, k: int, z: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def source(rate: float) -> Predict:
    """Return a prediction that depends on the state, its neighbours and the step."""
    return lambda z, timestep: (
        rate * z + (1 - rate) * z.roll(1, -1) + torch.tanh(z) * 0.01 * timestep
    )


def test_schedule_of_the_paper() -> None:
    alphas = alpha_schedule(0.7, 4, 10, "toward_video")
    assert alphas[:4] == [None] * 4
    assert alphas[4:] == pytest.approx([0.70, 0.75, 0.80, 0.85, 0.90, 0.95])


@given(alpha=st.floats(0, 1), num_steps=st.integers(1, 60), data=st.data())
def test_schedules_follow_their_formulas(alpha: float, num_steps: int, data: st.DataObject) -> None:
    tau = data.draw(st.integers(0, num_steps - 1))
    span = num_steps - tau
    video = alpha_schedule(alpha, tau, num_steps, "toward_video")[tau:]
    image = alpha_schedule(alpha, tau, num_steps, "toward_image")[tau:]
    constant = alpha_schedule(alpha, tau, num_steps, "constant")[tau:]
    assert video == pytest.approx([min(1, alpha + k * (1 - alpha) / span) for k in range(span)])
    assert image == pytest.approx([max(0, alpha - k * alpha / span) for k in range(span)])
    assert constant == pytest.approx([alpha] * span)


@given(raw=st.lists(st.floats(0.01, 1), min_size=1, max_size=5), data=st.data())
def test_weights_stay_on_the_simplex_and_move_to_the_named_source(
    raw: list[float], data: st.DataObject
) -> None:
    toward = data.draw(st.integers(0, len(raw) - 1))
    weights = [w / sum(raw) for w in raw]
    rows = [row for row in weight_schedule(weights, 3, 12, toward=toward) if row is not None]
    assert len(rows) == 9
    assert all(min(row) >= 0 and sum(row) == pytest.approx(1) for row in rows)
    assert [row[toward] for row in rows] == sorted(row[toward] for row in rows)
    assert rows[0] == pytest.approx(weights)


@pytest.mark.parametrize(
    ("alpha", "tau", "message"),
    [(1.1, 0, "sum to 1"), (-0.1, 0, "sum to 1"), (0.5, 10, "tau 10"), (0.5, -1, "tau -1")],
)
def test_impossible_schedules_are_refused(alpha: float, tau: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alpha_schedule(alpha, tau, 10)


def test_fusion_loop_is_the_algorithm_of_the_paper() -> None:
    num_steps, tau, alpha = 10, 4, 0.7
    (start,) = noise(1)
    video, image, ddim = source(0.9), source(0.6), Schedule(num_steps)
    zv, zi, a = start, start, alpha
    for i in range(num_steps):
        zv, zi = ddim.step(video(zv, i), i, zv), ddim.step(image(zi, i), i, zi)
        if i >= tau:
            zv = zi = a * zv + (1 - a) * zi
            a = min(1, a + (1 - alpha) / (num_steps - tau))
    weights = weight_schedule([alpha, 1 - alpha], tau, num_steps, toward=0)
    fused = fuse_denoise([video, image], [start, start], weights, ddim)
    assert torch.allclose(fused, zv, atol=1e-5)


@pytest.mark.parametrize("space", ["eps", "x0"])
def test_predictions_are_mixed_at_one_latent_from_tau_on(space: Space) -> None:
    tau, ddim, sources = 2, Schedule(5), [source(0.9), source(0.6)]
    states = noise(2)
    weights = weight_schedule([0.3, 0.7], tau, 5, toward=1)
    z: torch.Tensor | None = None
    for i in range(5):
        if (row := weights[i]) is None:
            states = [ddim.step(s(x, i), i, x) for s, x in zip(sources, states, strict=True)]
            continue
        if z is None:
            z = slerp(states[0], states[1], row[1])
        found = [predict(z, i) for predict in sources]
        a, b = math.sqrt(ddim.alpha_bar(i)), math.sqrt(1 - ddim.alpha_bar(i))
        if space == "x0":
            found = [(z - b * eps) / a for eps in found]
        mixed = slerp(found[0], found[1], row[1])
        z = ddim.step(mixed if space == "eps" else (z - a * mixed) / b, i, z)
    combine = functools.partial(fuse, interpolation="slerp")
    fused = fuse_denoise(sources, noise(2), weights, ddim, space=space, combine=combine)
    assert z is not None
    assert torch.allclose(fused, z, atol=1e-5)


@given(seed=st.integers(0, 20), first=st.floats(0, 1), toward=st.sampled_from([None, 0, 1]))
def test_linear_mixing_is_the_same_in_every_space_where_sources_start_together(
    seed: int, first: float, toward: int | None
) -> None:
    sources, (z,), ddim = [source(0.9), source(0.5)], noise(1, seed), Schedule(6)
    weights = weight_schedule([first, 1 - first], 0, 6, toward=toward)
    x, eps, x0 = (
        fuse_denoise(sources, [z, z], weights, ddim, space=space) for space in get_args(Space)
    )
    assert torch.allclose(x, eps, atol=1e-4)
    assert torch.allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize("space", get_args(Space))
@pytest.mark.parametrize(("alpha", "alone"), [(1.0, 0), (0.0, 1)])
def test_alpha_of_one_is_the_video_model_alone_and_of_zero_the_image_model(
    alpha: float, alone: int, space: Space
) -> None:
    sources, (z,), ddim = [source(0.9), source(0.6)], noise(1), Schedule(6)
    weights = weight_schedule([alpha, 1 - alpha], 0, 6)
    fused = fuse_denoise(sources, [z, z], weights, ddim, space=space)
    for i in range(6):
        z = ddim.step(sources[alone](z, i), i, z)
    assert torch.allclose(fused, z, atol=0 if space != "x0" else 1e-5, rtol=0)


@pytest.mark.parametrize("space", get_args(Space))
@pytest.mark.parametrize("stop", [0, 3, 4, 6])
def test_resuming_after_any_step_gives_the_same_bits(stop: int, space: Space) -> None:
    sources, states, ddim = [source(0.9), source(0.6), source(0.8)], noise(3), Schedule(8)
    weights = weight_schedule([0.5, 0.3, 0.2], 4, 8, toward=2)
    kept: dict[int, list[torch.Tensor]] = {}
    whole = fuse_denoise(sources, states, weights, ddim, space=space, on_step=kept.__setitem__)
    assert sorted(kept) == list(range(8))
    assert all(kept[i][0] is state for i in range(4, 8) for state in kept[i])
    resumed = fuse_denoise(sources, kept[stop], weights, ddim, space=space, start=stop + 1)
    assert torch.equal(resumed, whole)


def test_what_each_source_brings_to_a_step_is_shown() -> None:
    sources, ddim = [source(0.9), source(0.6), source(0.9)], Schedule(4)
    (z,) = noise(1)
    seen: dict[int, list[torch.Tensor]] = {}
    weights = weight_schedule([0.5, 0.3, 0.2], 2, 4)
    fuse_denoise(sources, [z] * 3, weights, ddim, on_parts=seen.__setitem__)
    assert sorted(seen) == [0, 1, 2, 3]
    for parts in seen.values():
        to_image, to_twin = similarity(parts, 0)
        assert torch.equal(to_twin, torch.ones(len(z)))
        one, other = parts[0].flatten(1), parts[1].flatten(1)
        assert torch.allclose(to_image, torch.cosine_similarity(one, other), atol=1e-6)
        assert not torch.equal(to_image, to_twin)


def test_fusing_is_per_frame() -> None:
    states = noise(2)
    for combine in (
        functools.partial(fuse, variance_preserving=True),
        functools.partial(fuse, interpolation="slerp"),
        functools.partial(fuse, match_statistics="per_frame"),
    ):
        whole = combine(states, [0.4, 0.6])
        assert torch.equal(whole[1:2], combine([s[1:2] for s in states], [0.4, 0.6]))


def test_variance_is_preserved_where_asked() -> None:
    states = [
        torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(s)) for s in range(3)
    ]
    third = [1 / 3] * 3
    assert float(fuse(states, third).std()) == pytest.approx(3**-0.5, abs=0.01)
    kept = fuse(states, third, variance_preserving=True)
    assert float(kept.std()) == pytest.approx(1, abs=0.01)


def test_matched_statistics_are_those_of_the_video_source() -> None:
    video, image = noise(2)
    fused = fuse([video, 5 * image + 3], [0.0, 1.0], match_statistics="per_frame")
    assert torch.allclose(fused.mean((2, 3)), video.mean((2, 3)), atol=1e-5)
    assert torch.allclose(fused.std((2, 3)), video.std((2, 3)), atol=1e-5)
    second = fuse([5 * image + 3, video], [1.0, 0.0], match_statistics="per_frame", reference=1)
    assert torch.equal(fused, second)


def test_what_cannot_be_fused_is_refused() -> None:
    one, two = noise(2)
    with pytest.raises(ValueError, match="cannot fuse shapes"):
        fuse([one, two[:1]], [0.5, 0.5])
    with pytest.raises(ValueError, match="slerp fuses 2 sources, not 3"):
        fuse([one, two, one], [0.5, 0.3, 0.2], interpolation="slerp")
    with pytest.raises(ValueError, match="2 sources but 1 states"):
        fuse_denoise([source(1), source(1)], [one], [(0.5, 0.5)], Schedule(1))
    with pytest.raises(ValueError, match="the last step must fuse"):
        fuse_denoise([source(1)], [one], [None], Schedule(1))
