"""Clean latents to noise by DDIM inversion: an image model frame by frame, a video model window by window."""

from __future__ import annotations

import torch

from latentloom.models.schedulers import Sampler
from latentloom.ops.sampling import invert as walk_back
from latentloom.schemas.stages import InvertStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise, predict_with
from latentloom.tasks.tensors import Array


def invert(chunk: OpenChunk) -> Array:
    """Invert a chunk or window, from step ``noise_start`` to where ``strength`` ends, or by one step."""
    stage = chunk.params(InvertStage)
    model = chunk.models.denoising(stage.model)
    sampler = model.sampler(stage.num_inference_steps)
    last = stage.num_inference_steps - sampler.start_index(stage.strength)
    start, stop = chunk.steps_between(stage.noise_start, last)
    (latents,) = chunk.states_before() or [_begin(chunk, stage, sampler)]
    if start == stop:
        return chunk.result([latents])
    predict = predict_with(chunk, model, chunk.timed, guidance_scale=stage.guidance_scale)
    latents = latents.to(model.denoiser.device)
    return chunk.result([walk_back(latents, predict, sampler, start=start, stop=stop)])


def _begin(chunk: OpenChunk, stage: InvertStage, sampler: Sampler) -> torch.Tensor:
    latents = chunk.input_latents()
    if not stage.noise_start:
        return latents
    noise = draw_noise(chunk, chunk.stage.frame_shape)
    return sampler.add_noise(latents, noise, stage.noise_start)
