"""Noise each frame and denoise it with a prompt (SDEdit, 2108.01073)."""

from __future__ import annotations

import torch

from latentloom.schemas.edits import Img2ImgEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.tensors import Array


def img2img(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    canvas = Canvas.of(chunk, chunk.params(Img2ImgEdit))
    return canvas.decode(img2img_latents(canvas))


def img2img_latents(canvas: Canvas) -> torch.Tensor:
    """Noise the frames' latents to ``strength``, and denoise them."""
    chunk = canvas.chunk
    stage = chunk.params(Img2ImgEdit)
    sampler = canvas.model.sampler(stage.num_inference_steps)
    start = sampler.start_index(stage.strength)

    def noisy() -> torch.Tensor:
        clean = canvas.encode(chunk.input_frames())
        return sampler.add_noise(clean, canvas.noise(), sampler.num_steps - start)

    predict = predict_with(
        chunk,
        canvas.model,
        chunk.timed,
        guidance_scale=stage.guidance_scale,
        reference=canvas.reference,
    )
    return canvas.denoise(noisy, predict, sampler, start=start)
