"""Train the interpolation model: temporal layers that see a frame on either side and fill in what is between.

The image model inside stays frozen. Five more input channels say which frames are known, and what they are.
What both together change in the image model's prediction is to be what the frames differ by from their
cross-fade, so that training begins with the cross-fade and can only gain on it. There is no noise: s of the
way from the frames z to the cross-fade c the model sees `(1 - s) z + s c`, and predicts `z - c`. A span's
error counts by how far its cross-fade is off: else those in which little happens would teach nothing.

Source: Video LDM (2304.08818), section 3.2, for mask and layers; 2310.03725 for the flow; the adapter's
layout, a widened `conv_in` beside the temporal layers, is that of PIA (2312.13964), as diffusers loads it.
"""

from __future__ import annotations

import random
from typing import Any, Final

import family
import numpy as np
import text
import torch
from data import EMPTY_EVERY, HELD_OUT, MAX_START, random_caption
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from loop import fit, load_config
from numpy.typing import NDArray
from train_motion import still

from latentloom.models.interpolate import LAST_TIMESTEP, SPAN, condition, cross_fade
from latentloom.sprites.render import render
from latentloom.sprites.scene import random_scene

LEAST_CHANGE: Final = 0.005
"""Mean square of a span's change; below it the span counts less and less."""


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
    """Return the image model with the video model's temporal layers, made to add nothing yet."""
    adapter = MotionAdapter.from_pretrained(family.EMBEDDED / "video", torch_dtype=torch.float32)
    model = still(UNetMotionModel.from_unet2d(unet, adapter))
    model.freeze_unet2d_params()
    model.conv_in = WidenedConv(model.conv_in)
    return model


def main() -> None:
    """Train it."""
    config = load_config("interpolate")
    torch.manual_seed(config.seed)
    vae = family.load_vae().to(memory_format=torch.channels_last)
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    unet = family.load_unet()
    model = new_interpolator(unet)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        frames, captions = draw_spans(rng, config.own)
        clean = family.encode(vae, frames).unflatten(0, (-1, SPAN))
        ends = [(span[0], span[-1]) for span in clean]
        fade = torch.stack([cross_fade(*pair) for pair in ends])
        known = torch.stack([condition(*pair) for pair in ends])
        s = torch.rand(len(clean), generator=generator)
        # Half of the spans at the cross-fade itself, from where a single step has to do it all.
        s[: len(s) // 2] = 1
        z = torch.lerp(clean, fade, s.view(-1, 1, 1, 1, 1))
        times = (s * LAST_TIMESTEP).round().long()
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, captions).repeat_interleave(SPAN, 0)
            alone = unet(z.flatten(0, 1), times.repeat_interleave(SPAN), words).sample
        window = torch.cat([z, known], 2).transpose(1, 2)
        together = model(window, times, words).sample.transpose(1, 2)
        change = clean - fade
        error = per_span(together - alone.view_as(z) - change)
        plain = per_span(change)
        facts = {"mse": error.mean().item(), "mse_cross_fade": plain.mean().item()}
        return (error / (plain + LEAST_CHANGE)).mean(), facts

    fit("interpolate", config, {"interpolate": model}, draw, lambda: export(model), export_every=50)


def per_span(change: torch.Tensor) -> torch.Tensor:
    """Return the mean square of `(num, SPAN, C, h, w)` over the frames that were not known, `(num,)`."""
    return change[:, 1:-1].square().flatten(1).mean(1)


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
    family.export("interpolate", lambda folder: adapter.half().save_pretrained(folder))


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
