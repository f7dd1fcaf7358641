"""Train the VAE: 64 x 64 pixels to 4 channels of 16 x 16 latents."""

from __future__ import annotations

import random

import family
import numpy as np
import torch
from data import HELD_OUT, NUM_CLIPS, NUM_FRAMES, training_frames, training_scene
from diffusers import AutoencoderKL
from loop import fit, load_config
from numpy.typing import NDArray

from latentloom.sprites.render import render
from latentloom.sprites.scene import random_scene


def new_vae() -> AutoencoderKL:
    """Return the untrained model."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=64,
        scaling_factor=1.0,
    )


def main() -> None:
    """Train, then say how well held-out frames are reconstructed."""
    config = load_config("vae")
    torch.manual_seed(config.seed)
    frames = training_frames()
    vae = new_vae().to(memory_format=torch.channels_last)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        images = family.pixels(_batch(frames, config.own["batch"], rng))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample(generator)).sample
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        error = decoded.float() - images
        mse = error.square().mean()
        loss = mse + 0.05 * error.abs().mean() + config.own["kl"] * divergence
        return loss, {"mse": mse.item(), "kl": divergence.item()}

    steps = fit("vae", config, {"vae": vae}, draw, lambda: export(vae, frames))
    print(f"{steps} steps, held-out PSNR {measure(family.load_vae()):.2f} dB")


@torch.no_grad()
def measure(vae: AutoencoderKL, num_clips: int = 32) -> float:
    """Return the mean PSNR in dB over frames of held-out clips."""
    values = []
    for index in range(num_clips):
        frames = render(random_scene(HELD_OUT + 500_000 + index), 2)
        error = family.decode(vae, family.encode(vae, frames)).astype(float) - frames
        values += [10 * np.log10(255**2 / np.square(e).mean()) for e in error]
    return float(np.mean(values))


@torch.no_grad()
def export(vae: AutoencoderKL, frames: NDArray[np.uint8]) -> None:
    """Write the model with the mean and spread of its latents in its config."""
    sample = family.pixels(frames[:: NUM_CLIPS // 250, ::8].reshape(-1, 64, 64, 3))
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(50)])
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in latents.mean((0, 2, 3)).tolist()],
        latents_std=[round(v, 5) for v in latents.std((0, 2, 3)).tolist()],
    )
    family.export_model("image/vae", vae)


def _batch(frames: NDArray[np.uint8], num: int, rng: random.Random) -> NDArray[np.uint8]:
    """Draw frames; every fourth is a 64-pixel cut of a scene at 128, for the upsampler."""
    large = num // 4
    images = [
        frames[rng.randrange(NUM_CLIPS), rng.randrange(NUM_FRAMES)] for _ in range(num - large)
    ]
    for _ in range(large):
        scene = training_scene(rng.randrange(NUM_CLIPS))
        frame = render(scene, 1, 128, start=rng.randrange(48))[0]
        top, left = rng.randrange(65), rng.randrange(65)
        images.append(frame[top : top + 64, left : left + 64])
    return np.stack(images)


if __name__ == "__main__":
    main()
