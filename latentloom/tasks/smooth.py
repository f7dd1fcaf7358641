"""Denoise a window with a video model."""

from __future__ import annotations

from latentloom.ops.handoff import going_on_from
from latentloom.ops.sampling import denoise
from latentloom.schemas.stages import SmoothStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.tensors import Array


def smooth(chunk: OpenChunk) -> Array:
    """Denoise one window from where its inversion ended, or by one step from where its neighbours are."""
    stage = chunk.params(SmoothStage)
    model = chunk.models.video(stage.model)
    assert stage.num_inference_steps is not None
    sampler = model.sampler(stage.num_inference_steps)
    first = sampler.start_index(1.0 if stage.strength is None else stage.strength)
    start, stop = chunk.steps_between(first, sampler.num_steps)
    (latents,) = chunk.states_before() or [chunk.input_latents()]
    predict = predict_with(chunk, model, chunk.timed, guidance_scale=stage.guidance_scale)
    before = chunk.handed_over()
    if before is not None:
        predict = going_on_from(predict, before.to(model.denoiser.device), sampler)
    latents = latents.to(model.denoiser.device)
    return chunk.result([denoise(latents, predict, sampler, start=start, stop=stop)])
