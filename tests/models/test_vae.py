from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models import load
from latentloom.models.vae import KLAutoencoder, card_frames, check_same_latent_space
from tests.models import tiny


def test_latents_are_the_posterior_mean_normalised_by_the_config(image: load.ImageModel) -> None:
    vae = image.vae
    assert isinstance(vae, KLAutoencoder)
    frames = card_frames(16)
    raw = vae.module.encode(frames).latent_dist.mean
    mean = torch.tensor([0.1, -0.2, 0.3, 0.0]).view(1, 4, 1, 1)
    std = torch.tensor([0.5, 1.0, 2.0, 1.5]).view(1, 4, 1, 1)
    latents = vae.encode_latents(frames)
    assert torch.allclose(latents, (raw - mean) * 0.5 / std, atol=1e-5)
    wanted = vae.module.decode(raw).sample.clamp(-1, 1)
    assert torch.allclose(vae.decode_latents(latents), wanted, atol=1e-5)
    assert (vae.downscale, vae.channels, vae.scaling_factor) == (2, 4, 0.5)


def test_shift_and_scale_serve_without_statistics(tmp_path: Path) -> None:
    folder = tiny.save_vae(tmp_path, latents_mean=None, latents_std=None, shift_factor=0.25)
    vae = load.load_vae(folder)
    assert isinstance(vae, KLAutoencoder)
    raw = vae.module.encode(card_frames(16)).latent_dist.mean
    assert torch.allclose(vae.encode_latents(card_frames(16)), (raw - 0.25) * 0.5, atol=1e-5)


def test_odd_sizes_are_refused(image: load.ImageModel) -> None:
    with pytest.raises(ModelError, match="18x17 do not divide by 2"):
        image.vae.encode_latents(torch.zeros(1, 3, 17, 18))


def test_a_vae_agrees_with_itself_and_its_copy(image: load.ImageModel, tmp_path: Path) -> None:
    assert check_same_latent_space(image.vae, image.vae) == 1
    twin = load.load_vae(tiny.save_vae(tmp_path))
    assert check_same_latent_space(image.vae, twin) > 0.9999
