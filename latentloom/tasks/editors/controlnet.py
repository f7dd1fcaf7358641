"""Make frames under the conditions of ControlNets (2302.05543), from noise or from noised frames."""

from __future__ import annotations

import torch

from latentloom.models.control import with_controls
from latentloom.schemas.edits import ControlNetEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.editors.conditions import load_controls
from latentloom.tasks.editors.latents import Canvas, noised
from latentloom.tasks.tensors import Array


def controlnet(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    canvas = Canvas.of(chunk, chunk.params(ControlNetEdit))
    return canvas.decode(controlnet_latents(canvas))


def controlnet_latents(canvas: Canvas) -> torch.Tensor:
    """Denoise under the conditions."""
    stage = canvas.chunk.params(ControlNetEdit)
    sampler = canvas.model.sampler(stage.num_inference_steps)
    start = sampler.start_index(stage.strength)
    controls, conditions = load_controls(canvas, stage.controlnet, sampler.timesteps[start:])
    predict = predict_with(
        canvas.chunk,
        canvas.model,
        canvas.chunk.timed,
        guidance_scale=stage.guidance_scale,
        reference=canvas.reference,
        denoiser=with_controls(canvas.model.denoiser, controls),
        control=conditions,
    )
    return canvas.denoise(
        lambda: noised(canvas, sampler, stage.strength), predict, sampler, start=start
    )
