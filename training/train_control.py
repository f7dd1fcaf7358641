"""Train the ControlNet on edges; text encoder and UNet stay as they are."""

from __future__ import annotations

import random

import family
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from loop import fit, load_config
from outlined import OutlinedFrames


def new_control(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet that starts as the UNet's encoder and changes nothing yet."""
    return ControlNetModel.from_unet(
        unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32, 64)
    )


def main() -> None:
    """Train it."""
    config = load_config("control")
    torch.manual_seed(config.seed)
    data = OutlinedFrames(config.own)
    unet = family.load_unet().to(memory_format=torch.channels_last)
    control = new_control(unet).to(memory_format=torch.channels_last)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        batch = data.draw(rng, generator)
        given = batch.noisy, batch.timesteps, batch.words
        down, middle = control(*given, controlnet_cond=batch.outlines, return_dict=False)
        predicted = unet(
            *given, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return data.loss(predicted, batch)

    fit(
        "control",
        config,
        {"control": control},
        draw,
        lambda: family.export_model("control", control),
    )


if __name__ == "__main__":
    main()
