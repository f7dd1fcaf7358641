from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.fuse import alpha_schedule, fuse, fuse_denoise, weight_schedule
from latentloom.ops.sampling import Step


def noise(num: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(num, 3, 4, 8, 8, generator=generator))


def source(rate: float) -> Step:
    """Return a step that depends on the state and on the step's number."""
    return lambda z, i: z * rate + torch.tanh(z) * 0.01 * i


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
    video, image = source(0.9), source(1.1)
    zv, zi, a = start, start, alpha
    for i in range(num_steps):
        zv, zi = video(zv, i), image(zi, i)
        if i >= tau:
            zv = zi = a * zv + (1 - a) * zi
            a = min(1, a + (1 - alpha) / (num_steps - tau))
    schedule = weight_schedule([alpha, 1 - alpha], tau, num_steps, toward=0)
    assert torch.allclose(fuse_denoise([video, image], [start, start], schedule), zv, atol=1e-5)


@pytest.mark.parametrize(("alpha", "alone"), [(1.0, 0), (0.0, 1)])
def test_alpha_of_one_is_the_video_model_alone_and_of_zero_the_image_model(
    alpha: float, alone: int
) -> None:
    sources, (z,) = [source(0.9), source(1.1)], noise(1)
    schedule = weight_schedule([alpha, 1 - alpha], 0, 6)
    fused = fuse_denoise(sources, [z, z], schedule)
    for i in range(6):
        z = sources[alone](z, i)
    assert torch.equal(fused, z)


@pytest.mark.parametrize("stop", [0, 3, 4, 7])
def test_resuming_after_any_step_gives_the_same_bits(stop: int) -> None:
    sources, states = [source(0.9), source(1.1), source(1.0)], noise(3)
    schedule = weight_schedule([0.5, 0.3, 0.2], 4, 8, toward=2)
    kept: dict[int, list[torch.Tensor]] = {}
    whole = fuse_denoise(sources, states, schedule, on_step=kept.__setitem__)
    assert sorted(kept) == list(range(8))
    assert torch.equal(fuse_denoise(sources, kept[stop], schedule, start=stop + 1), whole)


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


def test_what_cannot_be_fused_is_refused() -> None:
    one, two = noise(2)
    with pytest.raises(ValueError, match="cannot fuse shapes"):
        fuse([one, two[:1]], [0.5, 0.5])
    with pytest.raises(ValueError, match="slerp fuses 2 sources, not 3"):
        fuse([one, two, one], [0.5, 0.3, 0.2], interpolation="slerp")
    with pytest.raises(ValueError, match="2 sources but 1 states"):
        fuse_denoise([source(1), source(1)], [one], [(0.5, 0.5)])
    with pytest.raises(ValueError, match="the last step must fuse"):
        fuse_denoise([source(1)], [one], [None])
