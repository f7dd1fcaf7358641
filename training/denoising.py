"""The objective of every denoiser of the family: v-prediction on one noise schedule.

Shapes: B samples; latents `(B, 4, ...)`.
"""

from __future__ import annotations

from typing import Final

import torch
from diffusers import DDIMScheduler

# Above this signal-to-noise ratio a step's weight falls: the last touches would drown the rest. Below
# it the weights are those of a plain v-loss, so that the noisy steps, where colours are decided, keep
# theirs; min-SNR (2303.09556) would take it from them.
MAX_SNR: Final = 10.0


def new_scheduler() -> DDIMScheduler:
    """Return the schedule that all parts of the family share."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def noised(
    scheduler: DDIMScheduler, latents: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise each sample to a random timestep, evenly spread over the batch.

    Returns:
        The noisy latents, the timesteps `(B,)`, and the v to predict.
    """
    num = len(latents)
    even = (torch.arange(num) + torch.rand(num, generator=generator)) / num
    timesteps = (even * scheduler.config.num_train_timesteps).long()
    noise = torch.randn(latents.shape, generator=generator)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    return noisy, timesteps, scheduler.get_velocity(latents, noise, timesteps)


def loss_of(
    scheduler: DDIMScheduler, predicted: torch.Tensor, wanted: torch.Tensor, timesteps: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the weighted loss to minimise, and the plain v-loss to log."""
    error = (predicted - wanted).square().flatten(1).mean(1)
    kept = scheduler.alphas_cumprod[timesteps]
    weight = (MAX_SNR * (1 - kept) / kept).clamp(max=1)
    return (weight * error).mean(), {"v_loss": error.mean().item()}
