"""Repaint the masked part of latents, and keep the rest.

F frames, C channels, H x W pixels, h x w latent pixels; masks are 1 where pixels are made anew.
"""

from __future__ import annotations

from typing import Protocol

import torch

from latentloom.ops.sampling import OnStep, Predict, Schedule, ddim_step


class NoisingSchedule(Schedule, Protocol):
    """A schedule that also tells how clean latents look at a step."""

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, k: int) -> torch.Tensor:
        """Noise clean latents to where k inverse steps lead."""


def latent_mask(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """Shrink a mask to latents: a latent pixel is repainted if any of its pixels is.

    diffusers takes the pixel in the corner instead, which loses thin masks and leaves a fringe of what
    was there; for masks whose borders lie between latent pixels both are the same.

    Args:
        mask: `(F, 1, H, W)` of 0 and 1.
        factor: Pixels along one side of a latent pixel; H and W are multiples of it.

    Returns:
        `(F, 1, h, w)`.
    """
    return torch.nn.functional.max_pool2d(mask, factor)


def denoise_masked(
    z: torch.Tensor,
    predict: Predict,
    schedule: NoisingSchedule,
    *,
    start: int,
    clean: torch.Tensor,
    noise: torch.Tensor,
    mask: torch.Tensor,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Denoise latents with any model; after each step the known part is put back, as noisy as the rest.

    Args:
        z: `(F, C, h, w)` at timestep `timesteps[start]`.
        predict: The model.
        schedule: Its sampler.
        start: First step to take.
        clean: Latents `(F, C, h, w)` of what is known.
        noise: The noise that `clean` is noised with, `(F, C, h, w)`.
        mask: `(F, 1, h, w)`.
        on_step: Called with `(i, z)` after each step; `start=i + 1` goes on from there.

    Source: RePaint (2201.09865), equation 8, without its resampling.
    """
    step = ddim_step(predict, schedule)
    for i in range(start, schedule.num_steps):
        known = schedule.add_noise(clean, noise, schedule.num_steps - 1 - i)
        z = (1 - mask) * known + mask * step(z, i)
        if on_step is not None:
            on_step(i, z)
    return z
