"""The temporal upsampler: with temporal layers, so that what it invents stays from frame to frame.

F frames of a window, C channels; small latents h x w, large ones 2h x 2w.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from latentloom.models.denoisers import Prediction, joined_condition
from latentloom.models.protocols import Denoiser
from latentloom.models.upsample import Upsampler
from latentloom.models.video import VideoDenoiser, inflate


class LevelledTimeEmbedding(torch.nn.Module):
    """Embeds the timestep and, as `timestep_cond`, the level of noise that the small latents have.

    `UNet2DConditionModel` adds the level as a class; `UNetMotionModel` knows no classes.
    """

    def __init__(self, time_embedding: torch.nn.Module, class_embedding: torch.nn.Module) -> None:
        super().__init__()
        self.time_embedding, self.class_embedding = time_embedding, class_embedding

    def forward(self, sample: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Return the sum of both embeddings.

        Args:
            sample: The projected timestep `(B, D)`.
            condition: The projected level `(B, D)`.
        """
        embedded: torch.Tensor = self.time_embedding(sample) + self.class_embedding(condition)
        return embedded


def inflate_upsampler(unet: Any, adapter: Any) -> Any:
    """Put an adapter's temporal layers into an upsampler's UNet: a `UNetMotionModel` that takes the level.

    Raises:
        ModelError: If the adapter was made for another UNet.

    Source: Video LDM (2304.08818), section 3.4.
    """
    module = inflate(unet, adapter)
    embedding = LevelledTimeEmbedding(module.time_embedding, unet.class_embedding)
    module.time_embedding = embedding.requires_grad_(False)
    return module


def project_levels(module: Any, levels: torch.Tensor) -> torch.Tensor:
    """Return noise levels `(B,)` as the `timestep_cond` of an inflated upsampler."""
    projected: torch.Tensor = module.time_proj(levels).to(module.dtype)
    return projected


@dataclasses.dataclass(frozen=True, eq=False)
class VideoUpsampleDenoiser(VideoDenoiser):
    """An inflated upsampler, one window a call; `control` comes from `Upsampler.condition`."""

    level: int

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in a window of large latents; see `Denoiser.predict`.

        Raises:
            ModelError: If the window is too long, or the condition does not fit the latents.
        """
        both = joined_condition(self, latents, control)
        level = torch.full((1,), self.level, device=latents.device)
        with torch.inference_mode():
            projected = project_levels(self.module, level)
            output = self.run(both, timestep, text, timestep_cond=projected)
        return self.prediction.epsilon(output, latents, timestep)


@dataclasses.dataclass(frozen=True, eq=False)
class VideoUpsampler(Upsampler):
    """An upsampler with temporal layers."""

    def denoiser(self, level: int) -> Denoiser:
        """Return the denoiser that is told how noisy the small latents are.

        Args:
            level: Timestep that `condition` noised them to.
        """
        prediction = Prediction(self.schedule.prediction_type, self.schedule.alphas_cumprod())
        return VideoUpsampleDenoiser(self.module, prediction, level)
