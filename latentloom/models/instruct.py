"""InstructPix2Pix: a UNet that denoises frames beside their source's latents, under two guidances.

F frames, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

import dataclasses

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import UNetDenoiser
from latentloom.models.image import per_frame
from latentloom.models.predict import predictor
from latentloom.models.protocols import VAE, Denoiser
from latentloom.ops.sampling import Predict, guide_twice


@dataclasses.dataclass(frozen=True, eq=False)
class InstructDenoiser(UNetDenoiser):
    """`UNet2DConditionModel` with 2C input channels; `control` comes from `source_latents`."""

    @torch.inference_mode()
    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise beside the source's latents; see `Denoiser.predict`.

        Raises:
            ModelError: If there are no source latents, or they have another shape.
        """
        if [part.shape for part in control] != [latents.shape]:
            given = ", ".join(f"shape {tuple(part.shape)}" for part in control) or "none"
            raise ModelError(
                f"an instruction edits latents {tuple(latents.shape)} beside their source's; got {given}"
            )
        dtype = self.module.dtype
        both = torch.cat([latents, control[0].to(latents.device)], dim=1).to(dtype)
        words = per_frame(text, len(latents)).to(dtype)
        output = self.module(both, timestep, words, return_dict=False)[0]
        return self.prediction.epsilon(output, latents, timestep)


def source_latents(vae: VAE, frames: torch.Tensor) -> torch.Tensor:
    """Encode source frames as an instruction model is fed them: not multiplied by `scaling_factor`.

    The posterior's mode as it is, where the VAE's config holds no statistics of its latents: so do
    the published checkpoints and diffusers' pipeline. Where it holds `latents_mean` and
    `latents_std`, as the embedded family's does, the mode less the mean over the standard deviation.

    Args:
        vae: The model's.
        frames: `(F, 3, H, W)` in [-1, 1].

    Returns:
        `(F, C, h, w)`.

    Source: InstructPix2Pix (2211.09800), section 3.2.
    """
    return vae.encode_latents(frames) / vae.scaling_factor


def instruct_predictor(
    denoiser: Denoiser,
    source: torch.Tensor,
    text: torch.Tensor,
    *,
    negative: torch.Tensor | None = None,
    guidance_scale: float = 7.5,
    image_guidance_scale: float = 1.5,
    micro_batch: int = 8,
) -> Predict:
    """Return `(z, timestep) -> eps` of an instruction model.

    Args:
        denoiser: An `InstructDenoiser`.
        source: The frames' `source_latents`, `(F, C, h, w)`; zeros in the unconditional pass.
        text: The instruction, `(1, L, D)`.
        negative: What guidance steers away from; needed unless both scales are 1.
        guidance_scale: How far toward the instruction.
        image_guidance_scale: How far toward the source.
        micro_batch: Frames in a call, from the numerics profile.

    Raises:
        ModelError: If a scale is not 1 and there is no negative text.
    """

    def given(words: torch.Tensor, image: torch.Tensor) -> Predict:
        return predictor(denoiser, words, control=image, micro_batch=micro_batch)

    full = given(text, source)
    if guidance_scale == image_guidance_scale == 1:
        return full
    if negative is None:
        raise ModelError(
            f"guidance {guidance_scale:g} and image guidance {image_guidance_scale:g} need a"
            " negative prompt's embedding; it may be empty"
        )
    by_image, by_nothing = given(negative, source), given(negative, torch.zeros_like(source))

    def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
        return guide_twice(
            full(z, timestep),
            by_image(z, timestep),
            by_nothing(z, timestep),
            guidance_scale,
            image_guidance_scale,
        )

    return predict
