"""Train the ControlNet on edges; text encoder and UNet stay as they are."""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

import data
import denoising
import text
from latentloom.ops.edges import edges


def new_control(unet: UNet2DConditionModel) -> ControlNetModel:
    """Return a ControlNet that starts as the UNet's encoder and changes nothing yet."""
    return ControlNetModel.from_unet(
        unet, conditioning_channels=1, conditioning_embedding_out_channels=(16, 32, 64)
    )


def main() -> None:
    """Train; export the averaged weights."""
    config = data.load_config("control")
    torch.manual_seed(config["seed"])
    tokenizer, encoder, unet = text.load_frozen(), *data.frozen_image_model()
    unet = unet.to(memory_format=torch.channels_last)
    control = new_control(unet).to(memory_format=torch.channels_last)
    if _preview():
        data.export_model("control", control)
        return
    frames, latents = data.training_frames(), data.training_latents()
    scenes = [data.training_scene(k) for k in range(data.NUM_CLIPS)]
    scheduler, modules = denoising.new_scheduler(), {"control": control}
    optimiser = torch.optim.AdamW(control.parameters(), lr=config["rate"], weight_decay=0.01)
    average = data.Average(modules, config["ema"])
    clock = data.Clock(config["steps"], config["minutes"])
    resumed = data.resume("control", modules, average, optimiser, clock)
    log = data.Log("control", ["loss", "v_loss"], resumed=resumed)
    recent: list[tuple[float, float]] = []
    while clock.progress < 1:
        seed = config["seed"] * 1_000_000 + clock.step
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        for group in optimiser.param_groups:
            group["lr"] = clock.rate(config["rate"])
        clips = [rng.randrange(data.NUM_CLIPS) for _ in range(config["batch"])]
        times = [rng.randrange(data.NUM_FRAMES) for _ in clips]
        clean = latents[clips, times].float()
        pictures = np.stack([frames[k, t] for k, t in zip(clips, times, strict=True)])
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        captions = [data.random_caption(scenes[k], rng, drop=config["drop"]) for k in clips]
        with torch.no_grad():
            hidden = text.embed(tokenizer, encoder, captions)
        down, mid = control(
            noisy,
            timesteps,
            hidden,
            controlnet_cond=torch.from_numpy(edges(pictures)),
            return_dict=False,
        )
        predicted = unet(
            noisy,
            timesteps,
            hidden,
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample
        loss, v_loss = denoising.loss_of(scheduler, predicted, wanted, timesteps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        optimiser.step()
        average.update()
        clock.step += 1
        recent.append((loss.item(), v_loss.item()))
        if clock.step % 50 == 0:
            log.row(clock, *(sum(column) / len(recent) for column in zip(*recent, strict=True)))
            recent = []
        if clock.step % 300 == 0:
            data.checkpoint("control", modules, average, optimiser, clock)
            average.swap()
            data.export_model("control", control)
            average.swap()
    data.checkpoint("control", modules, average, optimiser, clock)
    average.swap()
    data.export_model("control", control)


def _preview() -> bool:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preview", action="store_true", help="export it untrained, and stop")
    return bool(parser.parse_args().preview)


if __name__ == "__main__":
    main()
