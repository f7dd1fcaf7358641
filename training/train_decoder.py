"""Train the VAE's decoder a second time, on latents as they are: encoder and latent space stay.

The latents get a little noise, so that the decoder forgives what a denoiser leaves behind.
"""

from __future__ import annotations

import random

import family
import torch
from data import (
    NUM_CLIPS,
    NUM_FRAMES,
    PAIR_FRAMES,
    training_frames,
    training_latents,
    training_pairs,
    training_scene,
)
from loop import fit, load_config
from train_vae import measure

from latentloom.sprites.render import render


def main() -> None:
    """Train, then say how well held-out frames are reconstructed."""
    config = load_config("decoder")
    torch.manual_seed(config.seed)
    vae = family.load_vae().to(memory_format=torch.channels_last)
    before = measure(vae)
    frames, latents, (_, large) = training_frames(), training_latents(vae), training_pairs(vae)
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        clips = [rng.randrange(NUM_CLIPS) for _ in range(config.own["batch"])]
        times = [rng.randrange(NUM_FRAMES) for _ in clips]
        wanted = torch.cat(
            [family.pixels(frames[k, t][None]) for k, t in zip(clips, times, strict=True)]
        )
        loss, mse = _loss(latents[clips, times], wanted, generator)
        # One picture of the upsampler's size, as many pixels as four small ones.
        clip, slot = rng.randrange(NUM_CLIPS), rng.randrange(len(PAIR_FRAMES))
        wanted = family.pixels(render(training_scene(clip), 1, 128, start=PAIR_FRAMES[slot]))
        other, _ = _loss(large[clip, slot][None], wanted, generator)
        return loss + 0.25 * other, {"mse": mse}

    def _loss(
        clean: torch.Tensor, wanted: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, float]:
        noise = torch.randn(clean.shape, generator=generator)
        noisy = family.denormalised(vae, clean.float() + config.own["noise"] * noise)
        with torch.autocast("cpu", torch.bfloat16):
            decoded = vae.decode(noisy.contiguous(memory_format=torch.channels_last)).sample
        error = decoded.float() - wanted
        mse = error.square().mean()
        return mse + 0.05 * error.abs().mean(), mse.item()

    modules = {"decoder": decoder}
    steps = fit("decoder", config, modules, draw, lambda: family.export_model("image/vae", vae))
    after = measure(family.load_vae())
    print(f"{steps} steps, held-out PSNR {before:.2f} dB before, {after:.2f} dB after")


if __name__ == "__main__":
    main()
