"""Edit frames one by one with an image model."""

from __future__ import annotations

from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.sampling import denoise
from latentloom.schemas.edits import Img2ImgEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise, predict_with
from latentloom.tasks.tensors import Array, frames_to_array, frames_to_tensor, pad_to


def edit(chunk: OpenChunk) -> Array:
    """Noise each frame's latents to ``strength``, and denoise them with the prompt (SDEdit)."""
    stage = chunk.params(Img2ImgEdit)
    model = chunk.models.image(stage.model)
    sampler = model.sampler(stage.num_inference_steps)
    start = sampler.start_index(stage.strength)

    frames = frames_to_tensor(chunk.input_frames())
    height, width = frames.shape[-2:]
    multiple = model.vae.downscale * chunk.plan.facts.models[stage.model].latent_multiple
    padded = pad_to(frames, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    clean = in_micro_batches(
        model.vae.encode_latents, chunk.micro_batch, padded.to(model.vae.device)
    )

    noise = draw_noise(chunk, tuple(clean.shape[1:])).to(clean.device)
    noisy = sampler.add_noise(clean, noise, stage.num_inference_steps - start)
    predict = predict_with(chunk, model, chunk.timed, guidance_scale=stage.guidance_scale)
    latents = denoise(noisy, predict, sampler, start=start)
    edited = in_micro_batches(model.vae.decode_latents, chunk.micro_batch, latents)
    return frames_to_array(edited[..., :height, :width], chunk.dtype)
