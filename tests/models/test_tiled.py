"""Tiles of the embedded family agree with whole frames, and their joins cannot be told from the rest.

A tile's attention knows the tile alone, so a tiled frame is near the whole one, not equal.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from latentloom.flows.example import SCENE
from latentloom.models.dependents import load_upsampler, load_video_upsampler
from latentloom.models.load import ImageModel, load_image_model
from latentloom.models.predict import predictor
from latentloom.models.protocols import Denoiser
from latentloom.models.tiled import TiledDenoiser, TiledVAE
from latentloom.models.upsample import Upsampler
from latentloom.ops.sampling import denoise
from latentloom.ops.tiles import in_tiles
from latentloom.sprites.render import render
from latentloom.tasks.tensors import frames_to_tensor

SIZE, OVERLAP = 16, 4  # latent pixels


@pytest.fixture(scope="module")
def sprites() -> ImageModel:
    return load_image_model("embedded:sprites/image")


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """One frame."""
    return pictures(1)


def pictures(num_frames: int) -> torch.Tensor:
    """Frames of 192 x 128 pixels, two tiles and a bit of latents high and wide."""
    frames = frames_to_tensor(np.stack(list(render(SCENE, num_frames))))
    return torch.nn.functional.interpolate(frames, size=(128, 192), mode="bicubic").clamp(-1, 1)


def psnr(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """For values in [-1, 1]."""
    return float(10 * torch.log10(4 / (found - wanted).square().mean()))


def cosine(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Mean over frames and latent pixels."""
    return float(torch.nn.functional.cosine_similarity(found, wanted, dim=1).mean())


def seam(found: torch.Tensor, wanted: torch.Tensor, joins: list[int]) -> float:
    """Compare the step from column to column at joins with that elsewhere, beside the whole frame's."""

    def ratio(frames: torch.Tensor) -> torch.Tensor:
        steps = frames.diff(dim=-1).abs().mean((0, 1, 2))
        at = torch.zeros(len(steps), dtype=torch.bool)
        at[joins] = True
        return steps[at].mean() / steps[~at].mean()

    return float(ratio(found) / ratio(wanted))


def joins(length: int, overlap: int, scale: int = 1) -> list[int]:
    """Steps between columns within the overlaps, or at the borders of tiles without one."""
    starts = range(SIZE - overlap, length - overlap, SIZE - overlap)
    return [
        x - 1
        for start in starts
        for x in range(start * scale, (start + overlap) * scale + 1)
        if x < length * scale
    ]


def test_tiled_latents_and_frames_agree_with_whole_ones(
    sprites: ImageModel, picture: torch.Tensor
) -> None:
    tiled = TiledVAE(sprites.vae, SIZE, OVERLAP)
    whole = sprites.vae.encode_latents(picture)
    latents = tiled.encode_latents(picture)
    assert torch.nn.functional.cosine_similarity(latents, whole, dim=1).mean() > 0.97
    assert psnr(tiled.decode_latents(whole), sprites.vae.decode_latents(whole)) > 30
    assert (
        psnr(tiled.decode_latents(latents), picture)
        > psnr(sprites.vae.decode_latents(whole), picture) - 2
    )


def test_joins_of_decoded_tiles_look_like_the_rest(
    sprites: ImageModel, picture: torch.Tensor
) -> None:
    latents = sprites.vae.encode_latents(picture)
    whole = sprites.vae.decode_latents(latents)
    factor, length = sprites.vae.downscale, latents.shape[-1]
    found = TiledVAE(sprites.vae, SIZE, OVERLAP).decode_latents(latents)
    assert seam(found, whole, joins(length, OVERLAP, factor)) < 1.15
    bad = in_tiles(sprites.vae.decode_latents, latents, size=SIZE, overlap=0, scale_out=factor)
    assert seam(bad, whole, joins(length, 0, factor)) > 5


@pytest.mark.parametrize("num_frames", [1, 2])
def test_upsampling_by_tiles_agrees_and_shows_no_join(sprites: ImageModel, num_frames: int) -> None:
    """One frame by the upsampler, a window of two by the one with temporal layers."""
    upsampler: Upsampler = load_upsampler("embedded:sprites/upsample", base=sprites)
    if num_frames > 1:
        upsampler = load_video_upsampler(
            "embedded:sprites/upsample_video", upsampler=upsampler, base=sprites
        )
    small = sprites.vae.encode_latents(pictures(num_frames))[..., ::2, ::2].contiguous()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_frames, small.shape[1], 32, 48, generator=generator)
    sampler = upsampler.sampler(2)

    def run(around: Callable[[Denoiser], Denoiser]) -> torch.Tensor:
        predict = predictor(
            around(upsampler.denoiser(0)),
            sprites.text.encode(["a star"]),
            control=upsampler.condition(small, torch.zeros_like(small), 0),
            micro_batch=1,
        )
        return denoise(noise, predict, sampler)

    whole = run(lambda denoiser: denoiser)
    tiled = run(lambda denoiser: TiledDenoiser(denoiser, SIZE, OVERLAP))
    assert cosine(tiled, whole) > 0.97
    assert seam(tiled, whole, joins(48, OVERLAP)) < 1.1
