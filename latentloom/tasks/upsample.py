"""Latents of twice the size, by a diffusion upsampler: frame by frame, or in windows by a temporal one."""

from __future__ import annotations

from latentloom.models.predict import predictor
from latentloom.ops.handoff import going_on_from
from latentloom.schemas.stages import UpsampleStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise
from latentloom.tasks.loading import embed
from latentloom.tasks.stepping import denoise_chunk
from latentloom.tasks.tensors import Array, latents_to_array
from latentloom.tasks.tiling import tiled_denoiser


def upsample(chunk: OpenChunk) -> Array:
    """Denoise large latents from noise, beside the small ones."""
    stage = chunk.params(UpsampleStage)
    upsampler, base = chunk.models.upsampler(stage.model)
    sampler = upsampler.sampler(stage.num_inference_steps)
    small = chunk.input_latents().to(base.vae.device)
    augmentation = draw_noise(chunk, tuple(small.shape[1:]), suffix="/augmentation")
    guided = stage.guidance_scale != 1
    predict = predictor(
        tiled_denoiser(upsampler.denoiser(stage.noise_level), stage.tiling, base.vae.downscale),
        embed(base, chunk.timed["prompt"]),
        negative=embed(base, chunk.timed["negative"]) if guided else None,
        guidance=stage.guidance_scale,
        control=upsampler.condition(small, augmentation, stage.noise_level),
        micro_batch=chunk.micro_batch,
    )
    before = chunk.handed_over()
    if before is not None:
        predict = going_on_from(predict, before.to(small.device), sampler)
    large = denoise_chunk(
        chunk,
        lambda: draw_noise(chunk, chunk.stage.frame_shape),
        predict,
        sampler,
        device=small.device,
    )
    return latents_to_array(large, chunk.dtype)
