"""Train the text encoder and the text-to-image UNet, together, on latents of single frames."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

import data
import denoising
import text


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
    """Train; export a preview early, and the averaged weights at the end."""
    config = data.load_config("image")
    torch.manual_seed(config["seed"])
    latents = data.training_latents()
    scenes = [data.training_scene(k) for k in range(data.NUM_CLIPS)]
    tokenizer = text.new_tokenizer()
    encoder = text.new_text_encoder(tokenizer)
    unet = new_unet().to(memory_format=torch.channels_last)
    modules = {"text_encoder": encoder, "unet": unet}
    print({name: sum(p.numel() for p in m.parameters()) for name, m in modules.items()})
    parameters = [p for m in modules.values() for p in m.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=config["rate"], betas=(0.9, 0.99), weight_decay=0.01)
    average = data.Average(modules, config["ema"])
    scheduler = denoising.new_scheduler()
    clock = data.Clock(config["steps"], config["minutes"], warmup=200)
    resumed = data.resume("image", modules, average, optimiser, clock)
    log = data.Log("image", ["loss", "v_loss"], resumed=resumed)
    recent: list[tuple[float, float]] = []
    while clock.progress < 1:
        seed = config["seed"] * 1_000_000 + clock.step
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        for group in optimiser.param_groups:
            group["lr"] = clock.rate(config["rate"])
        clips = [rng.randrange(data.NUM_CLIPS) for _ in range(config["batch"])]
        clean = torch.stack([latents[k, rng.randrange(data.NUM_FRAMES)] for k in clips]).float()
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        hidden = text.embed(tokenizer, encoder, [data.random_caption(scenes[k], rng) for k in clips])
        predicted = unet(noisy, timesteps, hidden).sample
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
        if clock.step % 300 == 0:
            data.checkpoint("image", modules, average, optimiser, clock)
        if clock.step in (300, 1500, 3000):
            average.swap()
            _export(tokenizer, encoder, unet)
            average.swap()
    data.checkpoint("image", modules, average, optimiser, clock)
    average.swap()
    _export(tokenizer, encoder, unet)


def _export(tokenizer: text.CLIPTokenizer, encoder: torch.nn.Module, unet: torch.nn.Module) -> None:
    """Write the parts beside the VAE, and the index that makes them a pipeline."""
    data.export("image/tokenizer", lambda folder: text.save_tokenizer(tokenizer, folder))
    data.export_model("image/text_encoder", encoder)
    data.export_model("image/unet", unet)
    data.export("image/scheduler", denoising.new_scheduler().save_pretrained)
    index: dict[str, object] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    data.write_text(Path("image/model_index.json"), json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
