"""Train the latent x2 upsampler: 16 x 16 latents of a 64-pixel frame to 32 x 32 ones of 128 pixels.

The input is the noisy large latents beside the small ones, repeated to twice their size and noised to a
level that the model is told (noise augmentation, 2112.10752 and 2304.08818), so that it forgives what
another model did to them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel

import data
import denoising
import text
from latentloom.sprites.render import render

TIMES = (0, 9)


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
    """Train; export the averaged weights."""
    config = data.load_config("upsample")
    torch.manual_seed(config["seed"])
    unet = new_upsampler().to(memory_format=torch.channels_last)
    if _preview():
        _export(unet)
        return
    tokenizer, (encoder, _) = text.load_frozen(), data.frozen_image_model()
    small, large = training_pairs()
    scenes = [data.training_scene(k) for k in range(data.NUM_CLIPS)]
    scheduler, modules = denoising.new_scheduler(), {"upsample": unet}
    optimiser = torch.optim.AdamW(unet.parameters(), lr=config["rate"], weight_decay=0.01)
    average = data.Average(modules, config["ema"])
    clock = data.Clock(config["steps"], config["minutes"])
    resumed = data.resume("upsample", modules, average, optimiser, clock)
    log = data.Log("upsample", ["loss", "v_loss"], resumed=resumed)
    recent: list[tuple[float, float]] = []
    while clock.progress < 1:
        seed = config["seed"] * 1_000_000 + clock.step
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        for group in optimiser.param_groups:
            group["lr"] = clock.rate(config["rate"])
        clips = [rng.randrange(data.NUM_CLIPS) for _ in range(config["batch"])]
        times = [rng.randrange(len(TIMES)) for _ in clips]
        noisy, timesteps, wanted = denoising.noised(scheduler, large[clips, times].float(), generator)
        level = torch.randint(0, config["max_level"], (len(clips),), generator=generator)
        low = small[clips, times].float()
        low = scheduler.add_noise(low, torch.randn(low.shape, generator=generator), level)
        low = torch.nn.functional.interpolate(low, scale_factor=2, mode="nearest")
        both = torch.cat([noisy, low], 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            captions = [data.random_caption(scenes[k], rng) for k in clips]
            hidden = text.embed(tokenizer, encoder, captions)
        predicted = unet(both, timesteps, hidden, class_labels=level).sample
        loss, v_loss = denoising.loss_of(scheduler, predicted, wanted, timesteps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
        average.update()
        clock.step += 1
        recent.append((loss.item(), v_loss.item()))
        if clock.step % 50 == 0:
            log.row(clock, *(sum(column) / len(recent) for column in zip(*recent, strict=True)))
            recent = []
        if clock.step % 300 == 0:
            data.checkpoint("upsample", modules, average, optimiser, clock)
            average.swap()
            _export(unet)
            average.swap()
    data.checkpoint("upsample", modules, average, optimiser, clock)
    average.swap()
    _export(unet)


def training_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents of the same frames at 64 and at 128 pixels, encoded once."""
    path = data.WORK / "pairs.npz"
    if not path.exists():
        vae = data.frozen_vae()
        small, large = [], []
        for index in range(data.NUM_CLIPS):
            scene = data.training_scene(index)
            for latents, size in ((small, 64), (large, 128)):
                clip = render(scene, max(TIMES) + 1, size, fps=data.FPS)[list(TIMES)]
                latents.append(data.encode(vae, clip).half().numpy())
        np.savez(path, small=np.stack(small), large=np.stack(large))
    pairs = np.load(path)
    return torch.from_numpy(pairs["small"]), torch.from_numpy(pairs["large"])


def _export(unet: UNet2DConditionModel) -> None:
    """Write the model and its index."""
    data.export_model("upsample/unet", unet)
    data.export("upsample/scheduler", denoising.new_scheduler().save_pretrained)
    index = {
        "_class_name": "LatentUpsampler",
        "_diffusers_version": "0.42.1",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    data.write_text(Path("upsample/model_index.json"), json.dumps(index, indent=2) + "\n")


def _preview() -> bool:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preview", action="store_true", help="export it untrained, and stop")
    return bool(parser.parse_args().preview)


if __name__ == "__main__":
    main()
