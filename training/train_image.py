"""Train the text encoder and the text-to-image UNet, together, on latents of single frames."""

from __future__ import annotations

import random

import denoising
import family
import text
import torch
from data import NUM_CLIPS, NUM_FRAMES, random_caption, training_latents, training_scenes
from diffusers import UNet2DConditionModel
from loop import fit, load_config
from transformers import CLIPTextModel, CLIPTokenizer


def new_unet() -> UNet2DConditionModel:
    """Return the untrained UNet: text is read in the two inner levels only."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def main() -> None:
    """Train both."""
    config = load_config("image")
    torch.manual_seed(config.seed)
    latents, scenes = training_latents(family.load_vae()), training_scenes()
    scheduler, tokenizer = denoising.new_scheduler(), text.new_tokenizer()
    encoder = text.new_text_encoder(tokenizer)
    unet = new_unet().to(memory_format=torch.channels_last)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        clips = [rng.randrange(NUM_CLIPS) for _ in range(config.own["batch"])]
        clean = torch.stack([latents[k, rng.randrange(NUM_FRAMES)] for k in clips]).float()
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        words = text.embed(tokenizer, encoder, [random_caption(scenes[k], rng) for k in clips])
        predicted = unet(noisy, timesteps, words).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    modules = {"text_encoder": encoder, "unet": unet}
    fit("image", config, modules, draw, lambda: export(tokenizer, encoder, unet))


def export(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
    """Write the parts beside the VAE, and the index that makes them a pipeline."""
    family.export("image/tokenizer", lambda folder: text.save_tokenizer(tokenizer, folder))
    family.export_model("image/text_encoder", encoder)
    family.export_model("image/unet", unet)
    family.export("image/scheduler", denoising.new_scheduler().save_pretrained)
    family.export_index(
        "image",
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


if __name__ == "__main__":
    main()
