"""The x4 upscaler gives what diffusers' own pipeline gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models.predict import predictor
from latentloom.models.pretrained import library
from latentloom.models.text import CLIPText
from latentloom.models.upscale import Upscaler, load_upscaler
from latentloom.models.vae import KLAutoencoder
from latentloom.ops.sampling import denoise
from tests.models import tiny

STEPS, LEVEL, GUIDANCE = 3, 20, 4.0


@pytest.fixture(scope="module")
def upscaler(tmp_path_factory: pytest.TempPathFactory) -> Upscaler:
    return load_upscaler(tiny.save_upscaler(tmp_path_factory.mktemp("upscaler")))


def frames(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_frames_are_those_of_diffusers_pipeline(upscaler: Upscaler) -> None:
    diffusers = library("diffusers")
    assert isinstance(upscaler.vae, KLAutoencoder)
    assert isinstance(upscaler.text, CLIPText)
    small, latents = frames(1, 2, 3, 16, 16), frames(2, 2, 4, 16, 16)
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(3))
    theirs = diffusers.StableDiffusionUpscalePipeline(
        vae=upscaler.vae.module,
        text_encoder=upscaler.text.module,
        tokenizer=upscaler.text.tokenizer,
        unet=upscaler.module,
        low_res_scheduler=diffusers.DDPMScheduler.from_config(upscaler.small_schedule.config),
        scheduler=diffusers.DDIMScheduler.from_config(upscaler.schedule.config),
    )
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        ["a car"] * 2,
        image=small / 2 + 0.5,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        noise_level=LEVEL,
        negative_prompt=["blurry"] * 2,
        generator=torch.Generator().manual_seed(3),
        latents=latents,
        output_type="pt",
    ).images
    predict = predictor(
        upscaler.denoiser(LEVEL),
        upscaler.text.encode(["a car"]),
        negative=upscaler.text.encode(["blurry"]),
        guidance=GUIDANCE,
        control=upscaler.condition(small, noise, LEVEL),
        micro_batch=2,
    )
    found = upscaler.vae.decode_latents(denoise(latents, predict, upscaler.sampler(STEPS)))
    assert found.shape == (2, 3, 64, 64)
    torch.testing.assert_close(found / 2 + 0.5, expected, atol=1e-5, rtol=0)


def test_the_level_of_noise_and_the_small_frames_matter(upscaler: Upscaler) -> None:
    latents, text = frames(2, 1, 4, 16, 16), upscaler.text.encode(["a"])
    one, other = frames(1, 1, 3, 16, 16), frames(4, 1, 3, 16, 16)
    plain = upscaler.denoiser(0).predict(latents, 500, text, one)
    assert not torch.allclose(plain, upscaler.denoiser(300).predict(latents, 500, text, one))
    assert not torch.allclose(plain, upscaler.denoiser(0).predict(latents, 500, text, other))
    with pytest.raises(ModelError, match=r"condition of shape \(1, 3, 16, 16\); got none"):
        upscaler.denoiser(0).predict(latents, 500, text)


def test_a_unet_of_other_channels_is_no_upscaler(tmp_path: Path) -> None:
    tiny.save_upscaler(tmp_path, in_channels=8)
    with pytest.raises(ModelError, match=r"maps 8 channels to 4; an upscaler .* maps 7 to 4"):
        load_upscaler(tmp_path)
