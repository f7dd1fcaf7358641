"""Join a model with the texts and conditions that hold in a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from latentloom.errors import ModelError
from latentloom.models.load import ImageModel, VideoModel
from latentloom.models.predict import predictor
from latentloom.models.protocols import Denoiser
from latentloom.models.reference import ReferencedDenoiser
from latentloom.ops.edges import canny, edges
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import Predict
from latentloom.schemas.conditions import Condition
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.loading import embed
from latentloom.tasks.tensors import Array


def predict_with(
    chunk: OpenChunk,
    model: ImageModel | VideoModel,
    texts: dict[str, str],
    *,
    guidance_scale: float,
    denoiser: Denoiser | None = None,
    control: torch.Tensor | Sequence[torch.Tensor] | None = None,
    reference: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Predict:
    """Return ``(z, timestep) -> eps`` of a model under the texts in force.

    Args:
        chunk: The chunk, for its micro-batch.
        model: The model; its text encoder embeds the texts.
        texts: ``prompt``, and ``negative`` where there is guidance.
        guidance_scale: Classifier-free guidance; 1 is none.
        denoiser: Instead of the model's own, such as one with a ControlNet.
        control: Condition ``(F, channels, H, W)`` for it, or several of such.
        reference: Tokens ``(F, n, D)`` of a reference image, and those that stand for none.
    """
    steered = model.denoiser if denoiser is None else denoiser
    text = embed(model, texts["prompt"])
    negative = None if guidance_scale == 1 else embed(model, texts["negative"])
    if reference is not None:
        steered = ReferencedDenoiser(steered, reference[0].shape[1])
        text = _followed_by(text, reference[0])
        negative = None if negative is None else _followed_by(negative, reference[1])
    return predictor(
        steered,
        text,
        negative=negative,
        guidance=guidance_scale,
        control=control,
        micro_batch=chunk.micro_batch,
    )


def _followed_by(text: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.cat([text.expand(len(tokens), -1, -1), tokens.to(text.device)], dim=1)


def draw_noise(chunk: OpenChunk, shape: tuple[int, ...], *, suffix: str = "") -> torch.Tensor:
    """Draw the chunk's noise, a generator for each absolute source frame."""
    seed, stream = chunk.noise_stream
    channels, height, width = shape
    return frame_noise(seed, stream + suffix, list(chunk.frames), (channels, height, width))


def make_condition(
    chunk: OpenChunk,
    use: Condition,
    *,
    role: str,
    channels: int,
    frames: Callable[[], Array],
) -> torch.Tensor:
    """Return a condition: the pictures of its map, or else what is made from the frames.

    Args:
        chunk: The chunk.
        use: What the recipe says of it.
        role: Its role in the stage, by which its map is found.
        channels: Channels that the model takes: 1 for grey pictures, 3 for colours.
        frames: Reads the frames ``(F, H, W, 3)`` that it is made from.

    Returns:
        ``(F, channels, H, W)`` in [0, 1], at the frames' size.

    Raises:
        ModelError: If the model takes another number of channels.
    """
    if use.map is None:
        found = torch.from_numpy(_made(use, _eight_bits(frames())))
    else:
        pictures = np.ascontiguousarray(chunk.map_frames(role).transpose(0, 3, 1, 2))
        found = torch.from_numpy(pictures).float() / 255
    if channels not in (1, 3):
        raise ModelError(f"model {use.model!r} takes conditions of {channels} channels, not 1 or 3")
    if found.shape[1] > channels:
        return found.mean(1, keepdim=True)
    return found.expand(-1, channels, -1, -1)


def _made(use: Condition, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    if use.kind == "canny":
        return canny(frames, low_threshold=use.low_threshold, high_threshold=use.high_threshold)
    return edges(frames)


def _eight_bits(frames: Array) -> Array:
    return (frames >> 8).astype(np.uint8) if frames.dtype == np.uint16 else frames
