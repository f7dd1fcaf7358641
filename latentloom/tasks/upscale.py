"""Frames of four times the size, by a diffusion upscaler, frame by frame."""

from __future__ import annotations

from latentloom.models.predict import predictor
from latentloom.schemas.stages import UpscaleStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise
from latentloom.tasks.loading import embed
from latentloom.tasks.stepping import denoise_chunk
from latentloom.tasks.tensors import Array, decode_to_array, frames_to_tensor, pad_to
from latentloom.tasks.tiling import tiled_denoiser, tiled_vae


def upscale(chunk: OpenChunk) -> Array:
    """Denoise the latents of large frames from noise, beside the small frames, and decode them."""
    stage = chunk.params(UpscaleStage)
    model = chunk.models.upscaler(stage.model)
    sampler = model.sampler(stage.num_inference_steps)

    small = frames_to_tensor(chunk.input_frames())
    height, width = small.shape[-2:]
    multiple = chunk.plan.facts.models[stage.model].latent_multiple
    small = pad_to(small, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    small = small.to(model.vae.device)
    augmentation = draw_noise(chunk, tuple(small.shape[1:]), suffix="/augmentation")

    guided = stage.guidance_scale != 1
    predict = predictor(
        tiled_denoiser(model.denoiser(stage.noise_level), stage.tiling, model.vae.downscale),
        embed(model, chunk.timed["prompt"]),
        negative=embed(model, chunk.timed["negative"]) if guided else None,
        guidance=stage.guidance_scale,
        control=model.condition(small, augmentation, stage.noise_level),
        micro_batch=chunk.micro_batch,
    )
    shape = (model.vae.channels, *small.shape[2:])
    latents = denoise_chunk(
        chunk, lambda: draw_noise(chunk, shape), predict, sampler, device=small.device
    )
    large = (model.vae.downscale * height, model.vae.downscale * width)
    vae = tiled_vae(model.vae, stage.tiling)
    return decode_to_array(vae, latents, large, chunk.dtype, chunk.micro_batch)
