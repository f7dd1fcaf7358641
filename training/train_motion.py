"""Train the temporal layers of the video model; the image model inside it stays frozen.

Source: Video LDM (2304.08818), section 3.1, with AnimateDiff's motion modules as temporal layers.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import denoising
import family
import text
import torch
from data import NUM_CLIPS, NUM_FRAMES, random_caption, training_latents, training_scenes
from diffusers import ModelMixin, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from loop import fit, load_config


def new_video_model(unet: UNet2DConditionModel) -> UNetMotionModel:
    """Return the video model: at first it gives exactly what the image model gives."""
    model = UNetMotionModel.from_unet2d(unet, new_adapter(unet))
    model.freeze_unet2d_params()
    return still(model)


def new_adapter(unet: ModelMixin) -> MotionAdapter:
    """Return untrained temporal layers for a UNet."""
    return MotionAdapter(
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=16,
        motion_max_seq_length=32,
    )


def still(model: UNetMotionModel) -> UNetMotionModel:
    """Make the temporal layers add nothing; diffusers starts them with random outputs."""
    for name, parameter in model.named_parameters():
        if "motion_modules" in name and ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return model


def main() -> None:
    """Train on short and long windows in turn."""
    config = load_config("motion")
    torch.manual_seed(config.seed)
    latents, scenes = training_latents(family.load_vae()), training_scenes()
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    scheduler, model = denoising.new_scheduler(), new_video_model(family.load_unet())

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        num_frames, num_clips = rng.choice(config.own["windows"])
        clips = [rng.randrange(NUM_CLIPS) for _ in range(num_clips)]
        first = rng.randrange(NUM_FRAMES - num_frames + 1)
        clean = latents[clips, first : first + num_frames].float().transpose(1, 2)
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        captions = [random_caption(scenes[k], rng) for k in clips]
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, captions)
        predicted = model(noisy, timesteps, words.repeat_interleave(num_frames, 0)).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    fit("motion", config, {"motion": model}, draw, lambda: export(model), export_every=200)


def export(model: UNetMotionModel) -> None:
    """Write the temporal layers alone, as a motion adapter."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_motion_modules(folder)
        adapter = MotionAdapter.from_pretrained(folder)

    def save(folder: Path) -> None:
        adapter.half().save_pretrained(folder)
        denoising.new_scheduler().save_pretrained(folder / "scheduler")

    family.export("video", save)


if __name__ == "__main__":
    main()
