"""A window that goes on from the one before: the shared frames come out as they were."""

from __future__ import annotations

import math

import pytest
import torch

from latentloom.models.schedulers import Sampler, Schedule
from latentloom.ops.handoff import going_on_from
from latentloom.ops.sampling import denoise

STEPS = 6


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Schedule({"beta_schedule": "scaled_linear", "beta_end": 0.012}).sampler(STEPS)


def latents(num_frames: int, seed: int) -> torch.Tensor:
    return torch.randn(num_frames, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
    """Predict noise that depends on neighbours and on the timestep."""
    return torch.tanh(z + 0.3 * z.roll(1, 0)) * (0.5 + timestep / 1000)


@pytest.mark.parametrize("shared", [1, 3, 8])
def test_shared_frames_end_where_the_window_before_left_them(sampler: Sampler, shared: int) -> None:
    reference = latents(shared, 1)
    ended = denoise(latents(8, 2), going_on_from(predict, reference, sampler), sampler)
    torch.testing.assert_close(ended[:shared], reference, atol=0.05, rtol=0.02)


def test_frames_that_are_not_shared_move_along(sampler: Sampler) -> None:
    reference, alone = latents(3, 1), denoise(latents(8, 2), predict, sampler)
    ended = denoise(latents(8, 2), going_on_from(predict, reference, sampler), sampler)
    assert (ended[3:] - alone[3:]).abs().min() > 1e-4


def test_correction_is_the_formula(sampler: Sampler) -> None:
    z, reference, t = latents(8, 3), latents(2, 4), sampler.timesteps[2]
    eps, abar = predict(z, t), sampler.alpha_bar(2)
    wanted = (z[:2] - math.sqrt(abar) * reference) / math.sqrt(1 - abar)
    difference = wanted - eps[:2]
    found = going_on_from(predict, reference, sampler)(z, t)
    torch.testing.assert_close(found[:2], eps[:2] + difference)
    weights = torch.tensor([6, 5, 4, 3, 2, 1]).view(6, 1, 1, 1) / 6
    torch.testing.assert_close(found[2:], eps[2:] + weights * difference.mean(0))


def test_frames_that_agree_already_are_left_alone(sampler: Sampler) -> None:
    z, t = latents(8, 5), sampler.timesteps[1]
    eps, abar = predict(z, t), sampler.alpha_bar(1)
    reference = (z[:3] - math.sqrt(1 - abar) * eps[:3]) / math.sqrt(abar)
    torch.testing.assert_close(going_on_from(predict, reference, sampler)(z, t), eps)
