"""Train the interpolation model: temporal layers that see a frame on either side and fill in what is between.

The image model inside stays frozen, as in the video model whose temporal layers these begin as. Five more
input channels say which frames are known, and what they are: the mask m, and `m z`.

Source: Video LDM (2304.08818), section 3.2 and appendix on interpolation; the adapter's layout, a widened
`conv_in` beside the temporal layers, is that of PIA (2312.13964), as diffusers loads it.
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
from data import EMPTY_EVERY, HELD_OUT, MAX_START, random_caption
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from loop import fit, load_config
from numpy.typing import NDArray

from latentloom.models.interpolate import SPAN, condition
from latentloom.sprites.render import render
from latentloom.sprites.scene import random_scene


class WidenedConv(torch.nn.Module):
    """The frozen first convolution, and one beside it for the channels that are new."""

    def __init__(self, conv: torch.nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.added = torch.nn.Conv2d(
            conv.in_channels + 1, conv.out_channels, 3, padding=1, bias=False
        )
        torch.nn.init.zeros_(self.added.weight)

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        known, new = sample.split([self.conv.in_channels, self.added.in_channels], 1)
        return self.conv(known) + self.added(new)


def new_interpolator(unet: UNet2DConditionModel) -> UNetMotionModel:
    """Return the video model with the new channels, which it does not look at yet."""
    adapter = MotionAdapter.from_pretrained(family.EMBEDDED / "video", torch_dtype=torch.float32)
    model = UNetMotionModel.from_unet2d(unet, adapter)
    model.freeze_unet2d_params()
    model.conv_in = WidenedConv(model.conv_in)
    return model


def main() -> None:
    """Train it."""
    config = load_config("interpolate")
    torch.manual_seed(config.seed)
    vae = family.load_vae().to(memory_format=torch.channels_last)
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    scheduler, model = denoising.new_scheduler(), new_interpolator(family.load_unet())

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        frames, captions = draw_spans(rng, config.own)
        clean = family.encode(vae, frames).unflatten(0, (len(captions), SPAN)).transpose(1, 2)
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        known = torch.stack([condition(span[:, 0], span[:, -1]) for span in clean])
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, captions)
        both = torch.cat([noisy, known.transpose(1, 2)], 1)
        predicted = model(both, timesteps, words.repeat_interleave(SPAN, 0)).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    fit(
        "interpolate", config, {"interpolate": model}, draw, lambda: export(model), export_every=200
    )


def draw_spans(rng: random.Random, own: dict[str, Any]) -> tuple[NDArray[np.uint8], list[str]]:
    """Draw two key frames and those between them, of scenes of any training seed, at several rates.

    Returns:
        Frames `(num * SPAN, 64, 64, 3)` and a caption for each span.
    """
    frames, captions = [], []
    for _ in range(own["batch"]):
        scene = random_scene(rng.randrange(HELD_OUT), num_sprites=rng.randrange(EMPTY_EVERY) > 0)
        fps = rng.choice(own["fps"])
        start = rng.randrange(int(MAX_START * fps / 8))
        frames.append(render(scene, SPAN, fps=fps, start=start))
        captions.append(random_caption(scene, rng, drop=own["drop"]))
    return np.concatenate(frames), captions


def export(model: UNetMotionModel) -> None:
    """Write the temporal layers and the first convolution, as a motion adapter."""
    adapter = adapter_of(model)

    def save(folder: Path) -> None:
        adapter.half().save_pretrained(folder)
        denoising.new_scheduler().save_pretrained(folder / "scheduler")

    family.export("interpolate", save)


def adapter_of(model: UNetMotionModel) -> MotionAdapter:
    """Return what was trained, as the adapter that makes the model from an image model."""
    channels = model.conv_in.conv.in_channels + model.conv_in.added.in_channels
    old = MotionAdapter.from_pretrained(family.EMBEDDED / "video")
    adapter = MotionAdapter.from_config({**old.config, "conv_in_channels": channels})
    state = {key: value for key, value in model.state_dict().items() if "motion_modules" in key}
    both = (model.conv_in.conv.weight, model.conv_in.added.weight)
    state |= {"conv_in.weight": torch.cat(both, 1), "conv_in.bias": model.conv_in.conv.bias}
    adapter.load_state_dict(state)
    return adapter


if __name__ == "__main__":
    main()
