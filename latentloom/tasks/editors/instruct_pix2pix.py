"""Edit frames by an instruction, each beside itself as it was (InstructPix2Pix, 2211.09800)."""

from __future__ import annotations

import torch

from latentloom.models.instruct import instruct_predictor, source_latents
from latentloom.ops.microbatch import in_micro_batches
from latentloom.schemas.edits import InstructPix2PixEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.loading import embed
from latentloom.tasks.tensors import Array, frames_to_tensor


def instruct_pix2pix(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    canvas = Canvas.of(chunk, chunk.params(InstructPix2PixEdit))
    return canvas.decode(instruct_pix2pix_latents(canvas))


def instruct_pix2pix_latents(canvas: Canvas) -> torch.Tensor:
    """Denoise from noise, with the frames' own latents beside it."""
    chunk, model = canvas.chunk, canvas.model
    stage = chunk.params(InstructPix2PixEdit)
    source = in_micro_batches(
        lambda frames: source_latents(model.vae, frames),
        chunk.micro_batch,
        canvas.padded(frames_to_tensor(chunk.input_frames())),
    )
    negative = chunk.timed.get("negative")
    predict = instruct_predictor(
        model.denoiser,
        source,
        embed(model, chunk.timed["prompt"]),
        negative=None if negative is None else embed(model, negative),
        guidance_scale=stage.guidance_scale,
        image_guidance_scale=stage.image_guidance_scale,
        micro_batch=chunk.micro_batch,
    )
    return canvas.denoise(canvas.noise, predict, model.sampler(stage.num_inference_steps))
