"""The x4 upscaler of Stable Diffusion: denoises latents of large frames beside the small frames themselves.

F frames; small frames h x w. Its VAE halves twice, so the latents of large frames, 4h x 4w, are h x w too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import Prediction
from latentloom.models.folders import inside, resolve_folder
from latentloom.models.offload import ON_CPU, Placement
from latentloom.models.pretrained import load_component, load_tokenizer
from latentloom.models.protocols import VAE, TextEncoder
from latentloom.models.schedulers import Sampler, Schedule
from latentloom.models.text import CLIPText
from latentloom.models.upsample import UpsampleDenoiser
from latentloom.models.vae import load_kl_autoencoder

FRAME_CHANNELS = 3
"""Of the small frame, which the UNet reads beside the latents."""


@dataclasses.dataclass(frozen=True, eq=False)
class Upscaler:
    """An upscaler with text encoder and VAE of its own."""

    vae: VAE
    text: TextEncoder
    module: Any
    schedule: Schedule
    small_schedule: Schedule

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return DDIM with N steps."""
        return self.schedule.sampler(num_inference_steps)

    def denoiser(self, level: int) -> UpsampleDenoiser:
        """Return the denoiser that is told how noisy the small frames are."""
        prediction = Prediction(self.schedule.prediction_type, self.schedule.alphas_cumprod())
        return UpsampleDenoiser(self.module, prediction, level)

    def condition(self, small: torch.Tensor, noise: torch.Tensor, level: int) -> torch.Tensor:
        """Return the small frames with noise: `sqrt(abar) x + sqrt(1 - abar) eps`.

        Args:
            small: `(F, 3, h, w)` in [-1, 1].
            noise: Standard normal, the same shape, of a per-frame stream.
            level: Timestep of the small frames' own schedule; 0 all but keeps them.
        """
        alpha_bar = float(self.small_schedule.alphas_cumprod()[level])
        return math.sqrt(alpha_bar) * small + math.sqrt(1 - alpha_bar) * noise.to(small.device)


@functools.lru_cache(maxsize=2)
def load_upscaler(
    folder: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    placement: Placement = ON_CPU,
) -> Upscaler:
    """Load an upscaler from a folder of `StableDiffusionUpscalePipeline`.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    options: dict[str, Any] = {"variant": variant, "placement": placement}
    module = load_component(root / "unet", expected=("UNet2DConditionModel",), **options)
    vae = load_kl_autoencoder(root / "vae", **options)
    config = module.config
    if (config.in_channels, config.out_channels) != (vae.channels + FRAME_CHANNELS, vae.channels):
        raise ModelError(
            f"{root} maps {config.in_channels} channels to {config.out_channels}; an upscaler of"
            f" {vae.channels}-channel latents maps {vae.channels + FRAME_CHANNELS} to {vae.channels}"
        )
    encoder = load_component(root / "text_encoder", expected=("CLIPTextModel",), **options)
    return Upscaler(
        vae,
        CLIPText(load_tokenizer(root / "tokenizer"), encoder),
        module,
        Schedule.from_folder(root / "scheduler"),
        Schedule.from_folder(root / "low_res_scheduler"),
    )
