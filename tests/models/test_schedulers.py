from __future__ import annotations

from typing import Any

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models.pretrained import library
from latentloom.models.schedulers import Schedule, check_agree
from latentloom.ops.sampling import denoise, invert
from tests.models.tiny import SD_SCHEDULE as SD

diffusers = library("diffusers")
SETTINGS = [SD, SD | {"timestep_spacing": "trailing"}, SD | {"set_alpha_to_one": True}]


def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
    return torch.tanh(z) * (0.5 + timestep / 2000)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("num_steps", [1, 7, 40])
def test_both_directions_are_those_of_diffusers(settings: dict[str, Any], num_steps: int) -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = Schedule(settings).sampler(num_steps)
    inverse = diffusers.DDIMInverseScheduler(**settings, clip_sample=False)
    forward = diffusers.DDIMScheduler(**settings, clip_sample=False)
    wanted = z
    inverse.set_timesteps(num_steps)
    for t in inverse.timesteps:
        wanted = inverse.step(predict(wanted, int(t)), t, wanted).prev_sample
    assert (invert(z, predict, sampler) - wanted).abs().max() <= 1e-5
    forward.set_timesteps(num_steps)
    for t in forward.timesteps:
        wanted = forward.step(predict(wanted, int(t)), t, wanted, eta=0.0).prev_sample
    ours = denoise(invert(z, predict, sampler), predict, sampler)
    assert (ours - wanted).abs().max() <= 1e-5


def test_large_latents_are_not_clipped() -> None:
    sampler = Schedule(SD | {"clip_sample": True, "thresholding": True}).sampler(10)
    z = torch.full((1, 4, 2, 2), 9.0)
    assert sampler.step(torch.zeros_like(z), 9, z).max() > 8.9
    assert sampler.inverse_step(torch.zeros_like(z), 0, z).max() > 8.9


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_undoes_the_inverse_step_of_the_same_noise(settings: dict[str, Any]) -> None:
    sampler = Schedule(settings).sampler(20)
    generator = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 1, 4, 8, 8, generator=generator)
    for k in range(20):
        there = sampler.inverse_step(eps, k, z)
        assert torch.allclose(sampler.step(eps, 19 - k, there), z, atol=2e-5)


def test_strength_starts_both_directions_at_the_same_timestep() -> None:
    sampler = Schedule(SD).sampler(40)
    assert [sampler.start_index(s) for s in (1.0, 0.5, 0.26, 0.0)] == [0, 20, 30, 40]
    start, asked = sampler.start_index(0.26), []

    def record(z: torch.Tensor, timestep: int) -> torch.Tensor:
        asked.append(timestep)
        return torch.zeros_like(z)

    z = invert(torch.zeros(1, 4, 2, 2), record, sampler, stop=40 - start)
    denoise(z, record, sampler, start=start)
    assert asked == [*asked[10:][::-1], *asked[10:]]
    with pytest.raises(ModelError, match=r"strength 1\.5"):
        sampler.start_index(1.5)


def test_noise_is_added_at_the_level_where_inversion_goes_on() -> None:
    sampler = Schedule(SD).sampler(20)
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampler.add_noise(clean, noise, 0), clean)
    forward = diffusers.DDIMScheduler(**SD)
    for k in (1, 3, 20):
        t = torch.tensor([sampler.timesteps[20 - k]])
        wanted = forward.add_noise(clean, noise, t)
        assert torch.allclose(sampler.add_noise(clean, noise, k), wanted, atol=1e-6)
    # With the true noise, going on from there and down again ends where it began.
    z = sampler.add_noise(clean, noise, 3)
    for k in range(3, 20):
        z = sampler.inverse_step(noise, k, z)
    assert torch.allclose(z, sampler.add_noise(clean, noise, 20), atol=1e-5)


def test_another_scheduler_of_the_same_betas_converts() -> None:
    euler = {k: v for k, v in SD.items() if k != "set_alpha_to_one"}
    euler |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}
    sampler = Schedule(euler | {"set_alpha_to_one": False}).sampler(20)
    check_agree({"ddim": Schedule(SD).sampler(20), "euler": sampler})


@pytest.mark.parametrize(
    ("changes", "num_steps", "message"),
    [
        ({"beta_schedule": "linear"}, 20, r"video: linear betas 0\.00085"),
        ({"set_alpha_to_one": True}, 20, r"last abar 1\.00000"),
        ({"steps_offset": 0}, 20, r"20 timesteps 950\.\.0"),
        ({}, 21, "21 timesteps"),
    ],
)
def test_schedulers_that_differ_are_printed(
    changes: dict[str, Any], num_steps: int, message: str
) -> None:
    image, video = Schedule(SD).sampler(20), Schedule(SD | changes).sampler(num_steps)
    check_agree({"image": image, "twin": Schedule(SD).sampler(20)})
    with pytest.raises(ModelError, match=message) as caught:
        check_agree({"image": image, "video": video})
    assert "image: scaled_linear betas 0.00085..0.01200" in str(caught.value)


def test_animatediff_and_stable_diffusion_differ_as_published() -> None:
    signal = Schedule(SD).alphas_cumprod()[501].sqrt()
    assert float(signal) == pytest.approx(0.52, abs=0.005)
    linear = Schedule(SD | {"beta_schedule": "linear"}).alphas_cumprod()[501].sqrt()
    assert float(linear) == pytest.approx(0.40, abs=0.05)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_impossible_step_counts_are_refused(num_steps: int) -> None:
    with pytest.raises(ModelError, match=r"is not within 1\.\.1000"):
        Schedule(SD).sampler(num_steps)


def test_schedule_without_signal_at_its_end_is_refused() -> None:
    config = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(ModelError, match="no signal left"):
        Schedule(config).sampler(20)
