"""Denoise a window with a video model."""

from __future__ import annotations

from functools import partial

import torch

from latentloom.ops.handoff import going_on_from
from latentloom.ops.sampling import denoise
from latentloom.schemas.stages import SmoothStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.stepping import denoise_chunk, estimate_after
from latentloom.tasks.tensors import Array


def smooth(chunk: OpenChunk) -> Array:
    """Denoise one window from where its inversion ended, or by one step from where its neighbours are."""
    stage = chunk.params(SmoothStage)
    model = chunk.models.denoising(stage.model)
    assert stage.num_inference_steps is not None
    sampler = model.sampler(stage.num_inference_steps)
    first = sampler.start_index(1.0 if stage.strength is None else stage.strength)
    start, stop = chunk.steps_between(first, sampler.num_steps)
    predict = predict_with(chunk, model, chunk.timed, guidance_scale=stage.guidance_scale)
    before = chunk.handed_over()
    if before is not None:
        predict = going_on_from(predict, before.to(model.denoiser.device), sampler)
    denoised = denoise_chunk(
        chunk,
        partial(_begin, chunk),
        predict,
        sampler,
        device=model.denoiser.device,
        start=start,
        loop=partial(denoise, stop=stop),
    )
    return chunk.result([denoised])


def smooth_estimate(chunk: OpenChunk, after: list[torch.Tensor]) -> torch.Tensor:
    """Return the clean latents ``(F, C, h, w)`` that the step at hand implied, from what it made."""
    stage = chunk.params(SmoothStage)
    assert stage.num_inference_steps is not None
    sampler = chunk.models.denoising(stage.model).sampler(stage.num_inference_steps)
    i, _ = chunk.steps_between(0, sampler.num_steps)
    return estimate_after(sampler, i, _begin(chunk), after[0])


def _begin(chunk: OpenChunk) -> torch.Tensor:
    (latents,) = chunk.states_before() or [chunk.input_latents()]
    return latents
