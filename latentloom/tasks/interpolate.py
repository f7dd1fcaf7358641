"""Four frames for each one: three that a model puts between every two neighbours."""

from __future__ import annotations

from itertools import pairwise

import torch

from latentloom.models.interpolate import FACTOR
from latentloom.schemas.stages import InterpolateStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.loading import embed
from latentloom.tasks.tensors import Array, latents_to_array


def interpolate(chunk: OpenChunk) -> Array:
    """Fill in what lies between the frames of a chunk, and up to the one after it.

    What is read comes out as it is, as every fourth frame. The last frame of a shot has none after it: it is
    held for the time that it was shown.
    """
    stage = chunk.params(InterpolateStage)
    model, base = chunk.models.interpolator(stage.model)
    num_own = chunk.stage.rate // FACTOR * chunk.chunk.num_frames
    known = chunk.input_latents()[: num_own + chunk.chunk.ahead].to(base.vae.device)
    text = embed(base, chunk.timed["prompt"])
    made = []
    for first, last in pairwise(known):
        made += [first[None], model.between(first, last, text, stage.num_inference_steps)]
    if not chunk.chunk.ahead:
        made.append(known[-1:].expand(FACTOR, -1, -1, -1))
    return latents_to_array(torch.cat(made), chunk.dtype)
