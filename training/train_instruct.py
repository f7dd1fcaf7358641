"""Train the instruction UNet on pictures before and after an edit; text encoder and VAE stay as they are.

Source: InstructPix2Pix (2211.09800), section 3.2. The picture to edit is four more input channels: its
latents, the posterior's mean as `family.encode` normalises it, without noise. Text, picture or both are
dropped at times, so that each has a guidance of its own.
"""

from __future__ import annotations

import random
from typing import Final

import denoising
import family
import numpy as np
import text
import torch
from data import HELD_OUT, MAX_START
from loop import fit, load_config
from numpy.typing import NDArray

from latentloom.sprites.edits import Task, draw_edit, instructions
from latentloom.sprites.render import render

TASKS: Final[tuple[Task, ...]] = ("recolour", "reshape", "background", "style")
# What is dropped of a sample, in the order of the weights in `drop`.
FATES: Final = ("nothing", "text", "picture", "both")


def main() -> None:
    """Train it."""
    config = load_config("instruct")
    torch.manual_seed(config.seed)
    vae = family.load_vae().to(memory_format=torch.channels_last)
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    scheduler, unet = denoising.new_scheduler(), family.widen(family.load_unet(), 8)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        frames, asked = draw_pairs(rng, config.own["batch"], config.own["weights"])
        before, after = family.encode(vae, frames).chunk(2)
        noisy, timesteps, wanted = denoising.noised(scheduler, after, generator)
        for index, fate in enumerate(rng.choices(FATES, weights=config.own["drop"], k=len(asked))):
            if fate in ("text", "both"):
                asked[index] = ""
            if fate in ("picture", "both"):
                before[index] = 0
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, asked)
        predicted = unet(torch.cat([noisy, before], 1), timesteps, words).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    name = "StableDiffusionInstructPix2PixPipeline"
    fit(
        "instruct",
        config,
        {"instruct": unet},
        draw,
        lambda: family.export_pipeline("instruct", name, unet),
    )


def draw_pairs(
    rng: random.Random, num: int, weights: list[float]
) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw edits of any training seed, `weights` saying how often each task comes.

    Returns:
        Frames `(2 * num, 64, 64, 3)`, all sources before all targets, and the instructions.
    """
    sources, targets, asked = [], [], []
    for task in rng.choices(TASKS, weights=weights, k=num):
        source, target = draw_edit(task, rng.randrange(HELD_OUT))
        start = rng.randrange(MAX_START)
        sources.append(render(source, 1, start=start)[0])
        targets.append(render(target, 1, start=start)[0])
        asked.append(rng.choice(instructions(source, target)))
    return np.stack(sources + targets), asked


if __name__ == "__main__":
    main()
