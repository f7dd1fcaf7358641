"""Four frames for each one: three that a model puts between every two neighbours."""

from __future__ import annotations

from itertools import pairwise

import torch

from latentloom.models.interpolate import FACTOR, SPAN, condition
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import denoise
from latentloom.schemas.stages import InterpolateStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.tensors import Array, latents_to_array


def interpolate(chunk: OpenChunk) -> Array:
    """Fill in what lies between the frames of a chunk, and up to the one after it.

    What is read comes out as it is, as every fourth frame. The last frame of a shot has none after it: it is
    held for the time that it was shown.
    """
    stage = chunk.params(InterpolateStage)
    model = chunk.models.interpolator(stage.model)
    sampler = model.sampler(stage.num_inference_steps)
    known = chunk.input_latents().to(model.denoiser.device)
    seed, stream = chunk.noise_stream
    shape = (known.shape[1], known.shape[2], known.shape[3])

    def between(first: torch.Tensor, last: torch.Tensor, frame: int) -> torch.Tensor:
        noise = frame_noise(seed, stream, range(frame, frame + SPAN), shape).to(known.device)
        predict = predict_with(
            chunk,
            model,
            chunk.timed,
            guidance_scale=stage.guidance_scale,
            control=condition(first, last),
        )
        return denoise(noise, predict, sampler)[1:-1]

    frames = chunk.frames[::FACTOR]
    made = [
        torch.cat([first[None], between(first, last, frame)])
        for (first, last), frame in zip(pairwise(known), frames, strict=False)
    ]
    if not chunk.chunk.ahead:
        made.append(known[-1:].expand(FACTOR, -1, -1, -1))
    return latents_to_array(torch.cat(made), chunk.dtype)
