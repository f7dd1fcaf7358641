"""Train the temporal layers of the video model; the image model inside it stays frozen.

Source: Video LDM (2304.08818), section 3.1, with AnimateDiff's motion modules as temporal layers.
"""

from __future__ import annotations

import argparse
import random
import tempfile

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

import data
import denoising
import text


def new_video_model(unet: UNet2DConditionModel) -> UNetMotionModel:
    """Return the video model: at first it gives exactly what the image model gives."""
    adapter = MotionAdapter(
        block_out_channels=tuple(unet.config.block_out_channels),
        motion_layers_per_block=1,
        motion_mid_block_layers_per_block=1,
        motion_num_attention_heads=4,
        motion_norm_num_groups=16,
        motion_max_seq_length=32,
    )
    model = UNetMotionModel.from_unet2d(unet, adapter)
    model.freeze_unet2d_params()
    for name, parameter in model.named_parameters():
        if "motion_modules" in name and ".proj_out." in name:
            torch.nn.init.zeros_(parameter)
    return model


def main() -> None:
    """Train on short and long windows in turn; export the averaged temporal layers."""
    config = data.load_config("motion")
    torch.manual_seed(config["seed"])
    tokenizer, encoder, unet = text.load_frozen(), *data.frozen_image_model()
    model = new_video_model(unet)
    if _preview():
        _export(model)
        return
    latents = data.training_latents()
    scenes = [data.training_scene(k) for k in range(data.NUM_CLIPS)]
    scheduler, modules = denoising.new_scheduler(), {"motion": model}
    parameters = [p for p in model.parameters() if p.requires_grad]
    print(sum(p.numel() for p in parameters), "temporal parameters")
    optimiser = torch.optim.AdamW(parameters, lr=config["rate"], weight_decay=0.01)
    average = data.Average(modules, config["ema"])
    clock = data.Clock(config["steps"], config["minutes"])
    resumed = data.resume("motion", modules, average, optimiser, clock)
    log = data.Log("motion", ["loss", "v_loss"], resumed=resumed)
    recent: list[tuple[float, float]] = []
    while clock.progress < 1:
        seed = config["seed"] * 1_000_000 + clock.step
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        for group in optimiser.param_groups:
            group["lr"] = clock.rate(config["rate"])
        turn = clock.step % len(config["frames"])
        num_frames, num_clips = config["frames"][turn], config["batch"][turn]
        clips = [rng.randrange(data.NUM_CLIPS) for _ in range(num_clips)]
        first = rng.randrange(data.NUM_FRAMES - num_frames + 1)
        clean = latents[clips, first : first + num_frames].float().transpose(1, 2)
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        captions = [data.random_caption(scenes[k], rng) for k in clips]
        with torch.no_grad():
            hidden = text.embed(tokenizer, encoder, captions)
        predicted = model(noisy, timesteps, hidden.repeat_interleave(num_frames, 0)).sample
        loss, v_loss = denoising.loss_of(scheduler, predicted, wanted, timesteps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        average.update()
        clock.step += 1
        recent.append((loss.item(), v_loss.item()))
        if clock.step % 50 == 0:
            log.row(clock, *(sum(column) / len(recent) for column in zip(*recent, strict=True)))
            recent = []
        if clock.step % 250 == 0:
            data.checkpoint("motion", modules, average, optimiser, clock)
            average.swap()
            _export(model)
            average.swap()
    data.checkpoint("motion", modules, average, optimiser, clock)
    average.swap()
    _export(model)


def _export(model: UNetMotionModel) -> None:
    """Write the temporal layers alone, as a motion adapter."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_motion_modules(folder)
        adapter = MotionAdapter.from_pretrained(folder)

    def save(folder: data.Path) -> None:
        adapter.half().save_pretrained(folder)
        denoising.new_scheduler().save_pretrained(folder / "scheduler")

    data.export("video", save)


def _preview() -> bool:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preview", action="store_true", help="export it untrained, and stop")
    return bool(parser.parse_args().preview)


if __name__ == "__main__":
    main()
