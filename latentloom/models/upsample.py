"""The latent upsampler: denoises large latents beside small ones that are repeated to their size.

F frames, C channels; small latents h x w, large ones 2h x 2w.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

import torch

from latentloom.models.denoisers import Prediction, UNetDenoiser, joined_condition
from latentloom.models.image import per_frame
from latentloom.models.protocols import Denoiser
from latentloom.models.schedulers import Sampler, Schedule

FACTOR: Final = 2


@dataclasses.dataclass(frozen=True, eq=False)
class UpsampleDenoiser(UNetDenoiser):
    """`UNet2DConditionModel` that reads a condition beside its latents, and how noisy that is.

    `control` comes from `Upsampler.condition`, C channels, or `Upscaler.condition`, 3.
    """

    level: int

    @torch.inference_mode()
    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in large latents; see `Denoiser.predict`.

        Raises:
            ModelError: If there is no condition, or it does not fit the latents.
        """
        dtype = self.module.dtype
        both = joined_condition(self, latents, control)
        levels = torch.full((len(latents),), self.level, device=latents.device)
        output = self.module(
            both.to(dtype),
            timestep,
            per_frame(text, len(latents)).to(dtype),
            class_labels=levels,
            return_dict=False,
        )[0]
        return self.prediction.epsilon(output, latents, timestep)


@dataclasses.dataclass(frozen=True, eq=False)
class Upsampler:
    """An upsampler's model and schedule; text and VAE are its base's."""

    module: Any
    schedule: Schedule

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return DDIM with N steps."""
        return self.schedule.sampler(num_inference_steps)

    def denoiser(self, level: int) -> Denoiser:
        """Return the denoiser that is told how noisy the small latents are.

        Args:
            level: Timestep that `condition` noised them to.
        """
        prediction = Prediction(self.schedule.prediction_type, self.schedule.alphas_cumprod())
        return UpsampleDenoiser(self.module, prediction, level)

    def condition(self, small: torch.Tensor, noise: torch.Tensor, level: int) -> torch.Tensor:
        """Return the condition: `sqrt(abar) x + sqrt(1 - abar) eps`, repeated to twice the size.

        Noise augmentation makes the upsampler forgive what another model did to the small latents.

        Args:
            small: `(F, C, h, w)`.
            noise: Standard normal, the same shape, of a per-frame stream.
            level: Timestep to noise to; 0 all but keeps them.

        Returns:
            `(F, C, 2h, 2w)`.

        Source: Video LDM (2304.08818), section 3.4; Cascaded diffusion models (2106.15282).
        """
        alpha_bar = float(self.schedule.alphas_cumprod()[level])
        noisy = math.sqrt(alpha_bar) * small + math.sqrt(1 - alpha_bar) * noise.to(small.device)
        return torch.nn.functional.interpolate(noisy, scale_factor=FACTOR, mode="nearest")
