"""What a model learns from that is steered by edges: noised training latents, their words and their edges."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import denoising
import family
import numpy as np
import text
import torch
from data import (
    NUM_CLIPS,
    NUM_FRAMES,
    random_caption,
    training_frames,
    training_latents,
    training_scenes,
)

from latentloom.ops.edges import edges


@dataclasses.dataclass(frozen=True)
class Batch:
    """A step's batch of B frames."""

    noisy: torch.Tensor
    """`(B, 4, 16, 16)`."""
    timesteps: torch.Tensor
    words: torch.Tensor
    """`(B, L, D)`."""
    outlines: torch.Tensor
    """`(B, 1, 64, 64)` in [0, 1]."""
    wanted: torch.Tensor
    """What is to be predicted from `noisy`."""


class OutlinedFrames:
    """The training frames, to draw batches from."""

    def __init__(self, own: dict[str, Any]) -> None:
        """Read them; `own` are the script's own settings: `batch` and `drop`."""
        self.size, self.drop = own["batch"], own["drop"]
        self.scheduler = denoising.new_scheduler()
        self.frames, self.scenes = training_frames(), training_scenes()
        self.latents = training_latents(family.load_vae())
        self.tokenizer, self.encoder = family.load_tokenizer(), family.load_text_encoder()

    def draw(self, rng: random.Random, generator: torch.Generator) -> Batch:
        """Draw frames, noise and levels of noise."""
        clips = [rng.randrange(NUM_CLIPS) for _ in range(self.size)]
        times = [rng.randrange(NUM_FRAMES) for _ in clips]
        clean = self.latents[clips, times].float()
        noisy, timesteps, wanted = denoising.noised(self.scheduler, clean, generator)
        captions = [random_caption(self.scenes[k], rng, drop=self.drop) for k in clips]
        with torch.no_grad():
            words = text.embed(self.tokenizer, self.encoder, captions)
        pictures = np.stack([self.frames[k, t] for k, t in zip(clips, times, strict=True)])
        return Batch(noisy, timesteps, words, torch.from_numpy(edges(pictures)), wanted)

    def loss(self, predicted: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
        """Return the loss of a prediction, and what else to log."""
        return denoising.loss_of(self.scheduler, predicted, batch.wanted, batch.timesteps)
