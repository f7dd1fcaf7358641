"""Latents to frames, frame by frame."""

from __future__ import annotations

from latentloom.schemas.stages import DecodeStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array, decode_to_array
from latentloom.tasks.tiling import tiled_vae


def decode(chunk: OpenChunk) -> Array:
    """Decode the latents of a chunk, and cut off what encoding padded."""
    stage = chunk.params(DecodeStage)
    vae = tiled_vae(chunk.models.image(stage.model).vae, stage.tiling)
    height, width, _ = chunk.stage.frame_shape
    latents = chunk.input_latents().to(vae.device)
    return decode_to_array(vae, latents, (height, width), chunk.dtype, chunk.micro_batch)
