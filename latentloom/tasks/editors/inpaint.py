"""Make the masked part of frames anew: inpainting, and outpainting, whose mask is a border.

An inpainting model reads [latents, mask, latents of what the mask leaves over]; with any other image
model the known part is put back after each step. F frames, H x W pixels, padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from latentloom.models.control import with_controls
from latentloom.models.image import ImageDenoiser
from latentloom.models.schedulers import Sampler
from latentloom.ops.inpaint import denoise_masked, latent_mask
from latentloom.ops.sampling import denoise
from latentloom.schemas.conditions import ControlNetUse
from latentloom.schemas.edits import EditStage, InpaintEdit, OutpaintEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.editors.conditions import load_controls
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.stepping import Denoise
from latentloom.tasks.tensors import Array, frames_to_tensor


@dataclass(frozen=True)
class Hole:
    """Frames with a part that is to be made anew."""

    frames: Array
    """`(F, H, W, 3)`, at the size of the result."""
    mask: Array
    """bool `(F, H, W)`, true where pixels are made anew."""

    def filled(self, edited: Array) -> Array:
        """Return the edited pixels inside of the mask, the frames' own outside."""
        return np.where(self.mask[..., None], edited, self.frames)


def inpaint(chunk: OpenChunk) -> Array:
    """Make the masked part of a chunk's frames anew."""
    stage = chunk.params(InpaintEdit)
    canvas, hole = Canvas.of(chunk, stage), masked_hole(chunk)
    latents = repaint_latents(
        canvas, stage, hole, strength=stage.strength, controlnet=stage.controlnet
    )
    edited = canvas.decode(latents)
    return hole.filled(edited) if stage.overlay else edited


def outpaint(chunk: OpenChunk) -> Array:
    """Grow a chunk's frames by a border."""
    stage = chunk.params(OutpaintEdit)
    canvas, hole = Canvas.of(chunk, stage), bordered_hole(chunk, stage)
    edited = canvas.decode(repaint_latents(canvas, stage, hole))
    return hole.filled(edited) if stage.overlay else edited


def masked_hole(chunk: OpenChunk) -> Hole:
    """Read frames and mask; what is at least half white is made anew."""
    white = chunk.map_frames("mask").astype(np.float32).mean(axis=-1) / 255
    return Hole(chunk.input_frames(), white >= 0.5)


def bordered_hole(chunk: OpenChunk, stage: OutpaintEdit) -> Hole:
    """Read frames, and put a border around them that repeats their edge."""
    frames = chunk.input_frames()
    border = ((0, 0), (stage.top, stage.bottom), (stage.left, stage.right))
    known = np.pad(np.zeros(frames.shape[:3], bool), border, constant_values=True)
    return Hole(np.pad(frames, (*border, (0, 0)), mode="edge"), known)


def repaint_latents(
    canvas: Canvas,
    stage: EditStage,
    hole: Hole,
    *,
    strength: float = 1.0,
    controlnet: Sequence[ControlNetUse] = (),
) -> torch.Tensor:
    """Denoise the hole.

    Args:
        canvas: The model and the padded size.
        stage: For steps and guidance.
        hole: Frames and mask.
        strength: How far the masked part is noised; 1 forgets what was there.
        controlnet: ControlNets whose conditions hold, too.

    Returns:
        Latents `(F, C, h, w)` of the whole frames.
    """
    sampler = canvas.model.sampler(stage.num_inference_steps)
    start = sampler.start_index(strength)
    pixels = canvas.padded(frames_to_tensor(hole.frames))
    mask = canvas.padded(torch.from_numpy(hole.mask[:, None].astype(np.float32)))
    small = latent_mask(mask, canvas.model.vae.downscale)
    clean, noise = canvas.encode_tensor(pixels), canvas.noise()
    controls, conditions = load_controls(canvas, controlnet, sampler.timesteps[start:])
    beside = _beside(canvas, pixels, mask, small)
    predict = predict_with(
        canvas.chunk,
        canvas.model,
        canvas.chunk.timed,
        guidance_scale=stage.guidance_scale,
        reference=canvas.reference,
        denoiser=with_controls(canvas.model.denoiser, controls) if controls else None,
        control=[*conditions, *beside],
    )
    loop: Denoise = denoise
    if not beside:
        loop = partial(denoise_masked, clean=clean, noise=noise, mask=small)
    begin = partial(_start, sampler, clean, noise, strength)
    return canvas.denoise(begin, predict, sampler, start=start, loop=loop)


def _start(
    sampler: Sampler, clean: torch.Tensor, noise: torch.Tensor, strength: float
) -> torch.Tensor:
    if strength == 1:
        return noise
    return sampler.add_noise(clean, noise, sampler.num_steps - sampler.start_index(strength))


def _beside(
    canvas: Canvas, pixels: torch.Tensor, mask: torch.Tensor, small: torch.Tensor
) -> list[torch.Tensor]:
    """Return what an inpainting model reads beside its latents; nothing for any other model."""
    denoiser = canvas.model.denoiser
    if not isinstance(denoiser, ImageDenoiser) or not denoiser.extra_channels:
        return []
    known = canvas.encode_tensor(pixels * (mask < 0.5))
    return [torch.cat([small, known], dim=1)]
