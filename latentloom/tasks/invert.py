"""Clean latents to noise by DDIM inversion: an image model frame by frame, a video model window by window."""

from __future__ import annotations

from latentloom.ops.sampling import invert as walk_back
from latentloom.schemas.stages import InvertStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise, predict_with
from latentloom.tasks.tensors import Array, latents_to_array


def invert(chunk: OpenChunk) -> Array:
    """Invert a chunk or window, from step ``noise_start`` to where ``strength`` ends."""
    stage = chunk.params(InvertStage)
    model = chunk.models.denoising(stage.model)
    sampler = model.sampler(stage.num_inference_steps)
    latents = chunk.input_latents().to(model.denoiser.device)
    if stage.noise_start:
        noise = draw_noise(chunk, chunk.stage.frame_shape).to(latents.device)
        latents = sampler.add_noise(latents, noise, stage.noise_start)
    predict = predict_with(chunk, model, chunk.timed, guidance_scale=stage.guidance_scale)
    stop = stage.num_inference_steps - sampler.start_index(stage.strength)
    inverted = walk_back(latents, predict, sampler, start=min(stage.noise_start, stop), stop=stop)
    return latents_to_array(inverted, chunk.dtype)
