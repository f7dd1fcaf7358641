"""Join a model with the texts and conditions that hold in a chunk."""

from __future__ import annotations

import torch

from latentloom.models.load import ImageModel, VideoModel
from latentloom.models.predict import predictor
from latentloom.models.protocols import Denoiser
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import Predict
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.loading import embed


def predict_with(
    chunk: OpenChunk,
    model: ImageModel | VideoModel,
    texts: dict[str, str],
    *,
    guidance_scale: float,
    denoiser: Denoiser | None = None,
    control: torch.Tensor | None = None,
) -> Predict:
    """Return ``(z, timestep) -> eps`` of a model under the texts in force.

    Args:
        chunk: The chunk, for its micro-batch.
        model: The model; its text encoder embeds the texts.
        texts: ``prompt``, and ``negative`` where there is guidance.
        guidance_scale: Classifier-free guidance; 1 is none.
        denoiser: Instead of the model's own, such as one with a ControlNet.
        control: Condition ``(F, channels, H, W)`` for it.
    """
    negative = None if guidance_scale == 1 else embed(model, texts["negative"])
    return predictor(
        model.denoiser if denoiser is None else denoiser,
        embed(model, texts["prompt"]),
        negative=negative,
        guidance=guidance_scale,
        control=control,
        micro_batch=chunk.micro_batch,
    )


def draw_noise(chunk: OpenChunk, shape: tuple[int, ...], *, suffix: str = "") -> torch.Tensor:
    """Draw the chunk's noise, a generator for each absolute source frame."""
    seed, stream = chunk.noise_stream
    channels, height, width = shape
    return frame_noise(seed, stream + suffix, list(chunk.frames), (channels, height, width))
