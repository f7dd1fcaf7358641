"""Make frames under the conditions of T2I-Adapters (2302.08453), from noise or from noised frames."""

from __future__ import annotations

import torch

from latentloom.models.adapter import with_adapters
from latentloom.schemas.edits import T2IAdapterEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.editors.conditions import load_adapters
from latentloom.tasks.editors.latents import Canvas, noised
from latentloom.tasks.tensors import Array


def t2i_adapter(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    canvas = Canvas.of(chunk, chunk.params(T2IAdapterEdit))
    return canvas.decode(t2i_adapter_latents(canvas))


def t2i_adapter_latents(canvas: Canvas) -> torch.Tensor:
    """Denoise with the features of the conditions."""
    stage = canvas.chunk.params(T2IAdapterEdit)
    sampler = canvas.model.sampler(stage.num_inference_steps)
    start = sampler.start_index(stage.strength)
    adapters, features = load_adapters(canvas, stage.t2i_adapter, sampler.timesteps[start:])
    predict = predict_with(
        canvas.chunk,
        canvas.model,
        canvas.chunk.timed,
        guidance_scale=stage.guidance_scale,
        denoiser=with_adapters(canvas.model.denoiser, adapters),
        control=features,
    )
    return canvas.denoise(
        lambda: noised(canvas, sampler, stage.strength), predict, sampler, start=start
    )
