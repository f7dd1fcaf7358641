"""Frames to latents: the VAE's posterior mean, frame by frame."""

from __future__ import annotations

import torch

from latentloom.ops.microbatch import in_micro_batches
from latentloom.schemas.stages import EncodeStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.tensors import Array, frames_to_tensor, latents_to_array, pad_to
from latentloom.tasks.tiling import tiled_vae


def encode(chunk: OpenChunk) -> Array:
    """Encode the frames of a chunk; odd sizes are padded by repeating the edge."""
    stage = chunk.params(EncodeStage)
    vae = tiled_vae(chunk.models.image(stage.model).vae, stage.tiling)
    _, height, width = chunk.stage.frame_shape

    def encode_part(frames: torch.Tensor) -> torch.Tensor:
        padded = pad_to(
            frames_to_tensor(frames.numpy()), height * vae.downscale, width * vae.downscale
        )
        return vae.encode_latents(padded.to(vae.device))

    frames = torch.from_numpy(chunk.input_frames())
    return latents_to_array(in_micro_batches(encode_part, chunk.micro_batch, frames), chunk.dtype)
