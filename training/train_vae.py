"""Train the VAE: 64 x 64 pixels to 4 channels of 16 x 16 latents."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

import data
from latentloom.sprites.render import render


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
    """Train, then measure the latents' statistics and export."""
    config = data.load_config("vae")
    torch.manual_seed(config["seed"])
    frames = data.training_frames()
    vae = new_vae().to(memory_format=torch.channels_last)
    average = data.Average({"vae": vae}, config["ema"])
    optimiser = torch.optim.AdamW(vae.parameters(), lr=config["rate"], betas=(0.9, 0.99), weight_decay=0.01)
    clock = data.Clock(config["steps"], config["minutes"])
    state = data.load_checkpoint("vae")
    if state:
        vae.load_state_dict(state["vae"])
        average.shadow, average.num = state["average"], state["num"]
        optimiser.load_state_dict(state["optimiser"])
        clock.step, clock.spent = state["step"], state["spent"]
    log = data.Log("vae", ["mse", "kl", "psnr"], resumed=bool(state))
    while clock.progress < 1:
        rng = np.random.default_rng([config["seed"], clock.step])
        for group in optimiser.param_groups:
            group["lr"] = clock.rate(config["rate"])
        images = data.pixels(_batch(frames, config["batch"], rng))
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            kl = posterior.kl().mean() / posterior.mean[0].numel()
            decoded = vae.decode(posterior.sample()).sample
        error = decoded.float() - images
        mse = error.square().mean()
        loss = mse + 0.05 * error.abs().mean() + config["kl"] * kl
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update()
        clock.step += 1
        if clock.step % 25 == 0:
            log.row(clock, mse.item(), kl.item(), 10 * np.log10(4 / mse.item()))
        if clock.step % 400 == 0:
            state = {"vae": vae.state_dict(), "average": average.shadow, "num": average.num}
            state |= {"optimiser": optimiser.state_dict(), "step": clock.step, "spent": clock.seconds}
            data.save_checkpoint("vae", state)
        if clock.step == 300:
            average.swap()
            _export(vae, frames)
            average.swap()
    average.swap()
    _export(vae, frames)
    psnr = measure(vae)
    print(f"held-out PSNR {psnr:.2f} dB after {clock.step} steps, {clock.seconds:.0f} s")
    log.row(clock, 4 / 10 ** (psnr / 10), 0.0, psnr)


@torch.no_grad()
def measure(vae: AutoencoderKL, num_clips: int = 32) -> float:
    """Return the mean PSNR in dB over frames of held-out clips."""
    values = []
    for index in range(num_clips):
        images = data.pixels(render(data.random_scene(data.HELD_OUT + 500_000 + index), 2))
        error = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1) - images
        values += [10 * np.log10(4 / e.square().mean().item()) for e in error]
    return float(np.mean(values))


@torch.no_grad()
def _export(vae: AutoencoderKL, frames: np.ndarray) -> None:
    """Write the model with the mean and spread of its latents in its config."""
    sample = data.pixels(frames[:: data.NUM_CLIPS // 250, ::8].reshape(-1, 64, 64, 3))
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in sample.split(50)])
    vae.register_to_config(
        latents_mean=[round(v, 5) for v in latents.mean((0, 2, 3)).tolist()],
        latents_std=[round(v, 5) for v in latents.std((0, 2, 3)).tolist()],
    )
    print("latents", vae.config.latents_mean, vae.config.latents_std)
    full = {key: value.clone() for key, value in vae.state_dict().items()}
    data.export("image/vae", lambda folder: vae.half().save_pretrained(folder))
    vae.float().load_state_dict(full)


def _batch(frames: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """Draw training frames; every fourth is a 64-pixel cut of a scene at 128, for the upsampler."""
    large = num // 4
    clips = rng.integers(0, len(frames), num - large)
    times = rng.integers(0, data.NUM_FRAMES, num - large)
    images = [frames[k, t] for k, t in zip(clips, times, strict=True)]
    for index in rng.integers(0, len(frames), large):
        frame = render(data.training_scene(int(index)), 1, 128, start=int(rng.integers(48)))[0]
        top, left = rng.integers(0, 65, 2)
        images.append(frame[top : top + 64, left : left + 64])
    return np.stack(images)


if __name__ == "__main__":
    main()
