"""Train the latent x2 upsampler: 16 x 16 latents of a 64-pixel frame to 32 x 32 ones of 128 pixels.

The input is the noisy large latents beside the small ones, repeated to twice their size and noised to
a level that the model is told (noise augmentation, 2304.08818), so that it forgives what another model
did to them.
"""

from __future__ import annotations

import random

import denoising
import family
import text
import torch
from data import NUM_CLIPS, PAIR_FRAMES, random_caption, training_pairs, training_scenes
from diffusers import UNet2DConditionModel
from loop import fit, load_config


def new_upsampler() -> UNet2DConditionModel:
    """Return the untrained model; `class_labels` is the level of the small latents' noise."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
        class_embed_type="timestep",
    )


def main() -> None:
    """Train it."""
    config = load_config("upsample")
    torch.manual_seed(config.seed)
    scheduler, scenes = denoising.new_scheduler(), training_scenes()
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    small, large = training_pairs(family.load_vae())
    unet = new_upsampler().to(memory_format=torch.channels_last)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        clips = [rng.randrange(NUM_CLIPS) for _ in range(config.own["batch"])]
        times = [rng.randrange(len(PAIR_FRAMES)) for _ in clips]
        clean = large[clips, times].float()
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        levels = torch.randint(0, config.own["max_level"], (len(clips),), generator=generator)
        low = small[clips, times].float()
        low = scheduler.add_noise(low, torch.randn(low.shape, generator=generator), levels)
        low = torch.nn.functional.interpolate(low, scale_factor=2, mode="nearest")
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, [random_caption(scenes[k], rng) for k in clips])
        both = torch.cat([noisy, low], 1)
        predicted = unet(both, timesteps, words, class_labels=levels).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    fit("upsample", config, {"upsample": unet}, draw, lambda: export(unet))


def export(unet: UNet2DConditionModel) -> None:
    """Write the model, its schedule, and its index."""
    family.export_model("upsample/unet", unet)
    family.export("upsample/scheduler", denoising.new_scheduler().save_pretrained)
    family.export_index(
        "upsample",
        {
            "_class_name": "LatentUpsampler",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        },
    )


if __name__ == "__main__":
    main()
