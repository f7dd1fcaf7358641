"""Frames to latents: the VAE's posterior mean, frame by frame."""

from __future__ import annotations

from latentloom.ops.microbatch import in_micro_batches
from latentloom.schemas.stages import EncodeStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array, frames_to_tensor, latents_to_array, pad_to


def encode(chunk: OpenChunk) -> Array:
    """Encode the frames of a chunk; odd sizes are padded by repeating the edge."""
    vae = chunk.models.image(chunk.params(EncodeStage).model).vae
    _, height, width = chunk.stage.frame_shape
    frames = frames_to_tensor(chunk.input_frames())
    frames = pad_to(frames, height * vae.downscale, width * vae.downscale)
    latents = in_micro_batches(vae.encode_latents, chunk.micro_batch, frames.to(vae.device))
    return latents_to_array(latents, chunk.dtype)
