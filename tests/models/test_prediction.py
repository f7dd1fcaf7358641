"""Inversion does not depend on whether a model predicts noise, velocity or the clean sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from latentloom.models.denoisers import Prediction
from latentloom.models.pretrained import library
from latentloom.models.schedulers import Schedule
from latentloom.ops.sampling import PredictionType, denoise, invert
from tests.models.tiny import SD_SCHEDULE as SD

diffusers = library("diffusers")
NUM_STEPS = 20
MEAN, SPREAD = 0.5, 0.7
LEVELS = Schedule(SD).alphas_cumprod()
TYPES: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")
CLEAN = MEAN + SPREAD * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def perfect(kind: PredictionType) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return the best model of latents that are normal with MEAN and SPREAD, in closed form."""

    def output(z: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha_bar = float(LEVELS[timestep])
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        eps = noise * (z - signal * MEAN) / (alpha_bar * SPREAD**2 + 1 - alpha_bar)
        clean = (z - noise * eps) / signal
        outputs: dict[PredictionType, torch.Tensor] = {
            "epsilon": eps,
            "sample": clean,
            "v_prediction": signal * eps - noise * clean,
        }
        return outputs[kind]

    return output


def our_noise(kind: PredictionType) -> Callable[[torch.Tensor, int], torch.Tensor]:
    prediction, model = Prediction(kind, LEVELS), perfect(kind)
    return lambda z, timestep: prediction.epsilon(model(z, timestep), z, timestep)


def inverted(kind: PredictionType) -> torch.Tensor:
    return invert(CLEAN, our_noise(kind), Schedule(SD).sampler(NUM_STEPS))


def inverted_by_diffusers(kind: PredictionType) -> torch.Tensor:
    scheduler = diffusers.DDIMInverseScheduler(**SD, clip_sample=False, prediction_type=kind)
    scheduler.set_timesteps(NUM_STEPS)
    z, model = CLEAN, perfect(kind)
    for t in scheduler.timesteps:
        z = scheduler.step(model(z, int(t)), t, z).prev_sample
    return z


def distance_there_and_back(noise: torch.Tensor, kind: PredictionType) -> float:
    back = denoise(noise, our_noise(kind), Schedule(SD).sampler(NUM_STEPS))
    return float((back - CLEAN).pow(2).mean().sqrt())


@pytest.mark.parametrize("kind", TYPES)
def test_one_model_inverts_alike_whatever_it_predicts(kind: PredictionType) -> None:
    assert torch.allclose(inverted(kind), inverted("epsilon"), atol=1e-4)


def test_noise_predictions_invert_as_in_diffusers() -> None:
    assert torch.allclose(inverted("epsilon"), inverted_by_diffusers("epsilon"), atol=1e-5)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_other_predictions_invert_unlike_diffusers_and_come_back_nearer(
    kind: PredictionType,
) -> None:
    ours, theirs = inverted(kind), inverted_by_diffusers(kind)
    assert float((ours - theirs).abs().max()) > 0.1
    assert distance_there_and_back(ours, kind) < 0.7 * distance_there_and_back(theirs, kind)
