"""Train temporal layers on the latent upsampler, which stays frozen, so that it stops to flicker.

The input is the upsampler's, a window of it: noisy large latents beside the small ones of the same frames,
repeated to twice their size and noised to one level that the model is told.

Source: Video LDM (2304.08818), section 3.4.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import denoising
import family
import numpy as np
import text
import torch
from data import HELD_OUT, MAX_START, random_caption
from diffusers import UNet2DConditionModel, UNetMotionModel
from loop import fit, load_config
from numpy.typing import NDArray
from train_motion import new_adapter, still

from latentloom.models.upsample_video import inflate_upsampler, project_levels
from latentloom.sprites.render import render
from latentloom.sprites.scene import random_scene

WINDOW = 8


def new_video_upsampler() -> UNetMotionModel:
    """Return the model: at first it gives exactly what the upsampler gives."""
    unet = UNet2DConditionModel.from_pretrained(
        family.EMBEDDED / "upsample/unet", torch_dtype=torch.float32
    )
    model = inflate_upsampler(unet, new_adapter(unet))
    model.freeze_unet2d_params()
    return still(model)


def main() -> None:
    """Train it."""
    config = load_config("upsample_video")
    torch.manual_seed(config.seed)
    vae = family.load_vae().to(memory_format=torch.channels_last)
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    scheduler, model = denoising.new_scheduler(), new_video_upsampler()

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        small, large, captions = draw_pairs(rng, config.own)
        clean = _windows(family.encode(vae, large))
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        levels = torch.randint(0, config.own["max_level"], (len(captions),), generator=generator)
        low = _windows(family.encode(vae, small))
        low = scheduler.add_noise(low, torch.randn(low.shape, generator=generator), levels)
        low = low.repeat_interleave(2, 3).repeat_interleave(2, 4)
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, captions)
        predicted = model(
            torch.cat([noisy, low], 1),
            timesteps,
            words.repeat_interleave(WINDOW, 0),
            timestep_cond=project_levels(model, levels),
        ).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    name = "upsample_video"
    fit(name, config, {name: model}, draw, lambda: export(model), export_every=25)


def draw_pairs(
    rng: random.Random, own: dict[str, Any]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[str]]:
    """Draw windows of scenes of any training seed, at several rates, at 64 and at 128 pixels.

    Returns:
        Frames `(num * WINDOW, 64, 64, 3)`, the same ones at 128 pixels, and a caption for each window.
    """
    small, large, captions = [], [], []
    for _ in range(own["batch"]):
        scene, fps = random_scene(rng.randrange(HELD_OUT)), rng.choice(own["fps"])
        start = rng.randrange(int(MAX_START * fps / 8))
        small.append(render(scene, WINDOW, 64, fps, start=start))
        large.append(render(scene, WINDOW, 128, fps, start=start))
        captions.append(random_caption(scene, rng))
    return np.concatenate(small), np.concatenate(large), captions


def _windows(latents: torch.Tensor) -> torch.Tensor:
    """Return latents `(B * WINDOW, C, h, w)` as `(B, C, WINDOW, h, w)`."""
    return latents.unflatten(0, (-1, WINDOW)).transpose(1, 2)


def export(model: UNetMotionModel) -> None:
    """Write the temporal layers alone, as a motion adapter."""
    adapter = new_adapter(model)
    state = {key: value for key, value in model.state_dict().items() if "motion_modules" in key}
    adapter.load_state_dict(state)

    def save(folder: Path) -> None:
        adapter.half().save_pretrained(folder)
        denoising.new_scheduler().save_pretrained(folder / "scheduler")

    family.export("upsample_video", save)


if __name__ == "__main__":
    main()
