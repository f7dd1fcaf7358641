"""Latents to frames, frame by frame."""

from __future__ import annotations

from latentloom.ops.microbatch import in_micro_batches
from latentloom.schemas.stages import DecodeStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array, frames_to_array


def decode(chunk: OpenChunk) -> Array:
    """Decode the latents of a chunk, and cut off what encoding padded."""
    vae = chunk.models.image(chunk.params(DecodeStage).model).vae
    height, width, _ = chunk.stage.frame_shape
    latents = chunk.input_latents().to(vae.device)
    frames = in_micro_batches(vae.decode_latents, chunk.micro_batch, latents)
    return frames_to_array(frames[..., :height, :width], chunk.dtype)
