"""Denoise a window so that it goes on from the last frames of the window before it.

F frames of a window, R of them shared with the window before, C channels, h x w latent pixels.
"""

from __future__ import annotations

import math

import torch

from latentloom.ops.sampling import Predict, Schedule


def going_on_from(predict: Predict, reference: torch.Tensor, schedule: Schedule) -> Predict:
    """Return a prediction that leads the first frames of a window to what they are already.

    At each step the noise that separates the first R frames from the reference takes the place of what the
    model predicts there, and the rest of the window is moved by the mean of that correction: wholly behind
    the R frames, less and less toward the end of the window, which the paper does not. The R frames must
    begin with the noise that they began with in the window before.

    Args:
        predict: The model.
        reference: `(R, C, h, w)`, clean latents of the frames that the window before shares, R up to F.
        schedule: The sampler whose timesteps are walked.

    Source: InsV2V (2311.00213), its correction for long videos.
    """
    shared = len(reference)

    def corrected(z: torch.Tensor, timestep: int) -> torch.Tensor:
        alpha_bar = schedule.alpha_bar(schedule.timesteps.index(timestep))
        eps = predict(z, timestep)
        wanted = (z[:shared] - math.sqrt(alpha_bar) * reference) / math.sqrt(1 - alpha_bar)
        moved = (wanted - eps[:shared]).mean(0)
        return torch.cat([wanted, eps[shared:] + _fading(len(z) - shared).to(z) * moved])

    return corrected


def _fading(num_frames: int) -> torch.Tensor:
    """Return weights `(F, 1, 1, 1)` that fall from 1 in equal steps, toward 0 behind the last."""
    return torch.linspace(1, 0, num_frames + 1)[:-1].view(-1, 1, 1, 1)
