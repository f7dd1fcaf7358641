"""Train the T2I-Adapter (2302.08453) on edges; text encoder and UNet stay as they are."""

from __future__ import annotations

import random
from typing import Final

import family
import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from loop import fit, load_config
from outlined import OutlinedFrames

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
    data = OutlinedFrames(config.own)
    unet = family.load_unet().to(memory_format=torch.channels_last)
    adapter = new_adapter(unet)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        batch = data.draw(rng, generator)
        predicted = unet(
            batch.noisy,
            batch.timesteps,
            batch.words,
            down_intrablock_additional_residuals=adapter(batch.outlines),
        ).sample
        return data.loss(predicted, batch)

    fit(
        "t2i_adapter",
        config,
        {"adapter": adapter},
        draw,
        lambda: family.export_model("t2i_adapter", adapter),
    )


if __name__ == "__main__":
    main()
