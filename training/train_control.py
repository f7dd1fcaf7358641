"""Train the ControlNet on edges; text encoder and UNet stay as they are."""

from __future__ import annotations

import random

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
from diffusers import ControlNetModel, UNet2DConditionModel
from loop import fit, load_config

from latentloom.ops.edges import edges


def new_control(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet that starts as the UNet's encoder and changes nothing yet."""
    return ControlNetModel.from_unet(
        unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32, 64)
    )


def main() -> None:
    """Train it."""
    config = load_config("control")
    torch.manual_seed(config.seed)
    frames, scenes = training_frames(), training_scenes()
    latents, scheduler = training_latents(family.load_vae()), denoising.new_scheduler()
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    unet = family.load_unet().to(memory_format=torch.channels_last)
    control = new_control(unet).to(memory_format=torch.channels_last)

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
        outlines = torch.from_numpy(edges(pictures))
        down, middle = control(noisy, timesteps, words, controlnet_cond=outlines, return_dict=False)
        predicted = unet(
            noisy,
            timesteps,
            words,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    fit(
        "control",
        config,
        {"control": control},
        draw,
        lambda: family.export_model("control", control),
    )


if __name__ == "__main__":
    main()
