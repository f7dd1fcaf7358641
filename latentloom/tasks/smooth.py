"""Denoise a window with a video model."""

from __future__ import annotations

from latentloom.ops.sampling import denoise
from latentloom.schemas.stages import SmoothStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.tensors import Array, latents_to_array


def smooth(chunk: OpenChunk) -> Array:
    """Denoise one window from where its inversion ended."""
    stage = chunk.params(SmoothStage)
    model = chunk.models.video(stage.model)
    assert stage.num_inference_steps is not None
    sampler = model.sampler(stage.num_inference_steps)
    latents = chunk.input_latents().to(model.denoiser.device)
    predict = predict_with(chunk, model, chunk.timed, guidance_scale=stage.guidance_scale)
    start = sampler.start_index(1.0 if stage.strength is None else stage.strength)
    return latents_to_array(denoise(latents, predict, sampler, start=start), chunk.dtype)
