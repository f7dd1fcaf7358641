"""Train the T2I-Adapter (2302.08453) on edges; text encoder and UNet stay as they are."""

from __future__ import annotations

import random
from typing import Final

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
from diffusers import T2IAdapter, UNet2DConditionModel
from loop import fit, load_config

from latentloom.ops.edges import edges

# Pixels to a feature of the first level: the UNet's first block, which has no attention, takes them
# where it has halved latents of 4 pixels.
DOWNSCALE: Final = 8


def new_adapter(unet: UNet2DConditionModel) -> T2IAdapter:
    """Return an adapter with a level of features for each of the UNet's, laid out as for SDXL's."""
    return T2IAdapter(
        in_channels=1,
        channels=list(unet.config.block_out_channels),
        num_res_blocks=2,
        downscale_factor=DOWNSCALE,
        adapter_type="full_adapter_xl",
    )


def main() -> None:
    """Train it."""
    config = load_config("t2i_adapter")
    torch.manual_seed(config.seed)
    frames, scenes = training_frames(), training_scenes()
    latents, scheduler = training_latents(family.load_vae()), denoising.new_scheduler()
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    unet = family.load_unet().to(memory_format=torch.channels_last)
    adapter = new_adapter(unet)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        clips = [rng.randrange(NUM_CLIPS) for _ in range(config.own["batch"])]
        times = [rng.randrange(NUM_FRAMES) for _ in clips]
        clean = latents[clips, times].float()
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        captions = [random_caption(scenes[k], rng, drop=config.own["drop"]) for k in clips]
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, captions)
        pictures = np.stack([frames[k, t] for k, t in zip(clips, times, strict=True)])
        features = adapter(torch.from_numpy(edges(pictures)))
        predicted = unet(
            noisy, timesteps, words, down_intrablock_additional_residuals=features
        ).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    fit(
        "t2i_adapter",
        config,
        {"adapter": adapter},
        draw,
        lambda: family.export_model("t2i_adapter", adapter),
    )


if __name__ == "__main__":
    main()
