from __future__ import annotations

import math

import pytest
import torch

from latentloom.ops.sampling import PredictionType, denoise, guide, invert, to_epsilon


class Halving:
    """A schedule written out, to check the loops: `levels` are abar, the noisiest first."""

    timesteps = (40, 30, 20, 10)
    num_steps = 4
    levels = (0.1, 0.3, 0.6, 0.9, 1.0)

    def alpha_bar(self, i: int) -> float:
        return self.levels[i]

    def _move(self, eps: torch.Tensor, z: torch.Tensor, now: float, then: float) -> torch.Tensor:
        clean = (z - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(then) * clean + math.sqrt(1 - then) * eps

    def step(self, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        return self._move(eps, z, self.levels[i], self.levels[i + 1])

    def inverse_step(self, eps: torch.Tensor, k: int, z: torch.Tensor) -> torch.Tensor:
        return self._move(eps, z, self.levels[4 - k], self.levels[3 - k])


EPS = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
CLEAN = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))


def test_inverting_and_denoising_with_the_true_noise_is_exact() -> None:
    asked: list[int] = []

    def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
        asked.append(timestep)
        return EPS

    noisy = invert(CLEAN, predict, Halving())
    assert torch.allclose(noisy, math.sqrt(0.1) * CLEAN + math.sqrt(0.9) * EPS, atol=1e-5)
    assert torch.allclose(denoise(noisy, predict, Halving()), CLEAN, atol=1e-5)
    assert asked == [10, 20, 30, 40, 40, 30, 20, 10]


def test_both_loops_resume_after_any_step() -> None:
    def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.tanh(z) * timestep / 40

    for loop in (denoise, invert):
        kept: dict[int, torch.Tensor] = {}
        whole = loop(CLEAN, predict, Halving(), on_step=kept.__setitem__)
        assert sorted(kept) == [0, 1, 2, 3]
        for index, z in kept.items():
            assert torch.equal(loop(z, predict, Halving(), start=index + 1), whole)


def test_steps_outside_the_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="step 5"):
        denoise(CLEAN, lambda z, t: z, Halving(), start=5)
    with pytest.raises(ValueError, match="step -1"):
        invert(CLEAN, lambda z, t: z, Halving(), stop=-1)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_type_means_the_same_noise(kind: PredictionType) -> None:
    alpha_bar = 0.3
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    z = signal * CLEAN + noise * EPS
    outputs = {"epsilon": EPS, "v_prediction": signal * EPS - noise * CLEAN, "sample": CLEAN}
    assert torch.allclose(to_epsilon(outputs[kind], z, alpha_bar, kind), EPS, atol=1e-5)


def test_guidance_of_zero_and_one_are_the_two_predictions() -> None:
    assert torch.equal(guide(EPS, CLEAN, 0.0), CLEAN)
    assert torch.allclose(guide(EPS, CLEAN, 1.0), EPS, atol=1e-6)
    assert torch.allclose(guide(EPS, CLEAN, 7.5), 7.5 * EPS - 6.5 * CLEAN, atol=1e-4)
