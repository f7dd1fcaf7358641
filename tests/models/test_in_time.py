"""Models that work in time: the temporal upsampler and the interpolator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models import dependents, load
from latentloom.models.image import ImageDenoiser
from latentloom.models.interpolate import Interpolator, condition, cross_fade
from latentloom.models.pretrained import library
from latentloom.models.upsample import Upsampler
from latentloom.models.upsample_video import VideoUpsampler
from latentloom.ops.noise import frame_noise
from tests.models import tiny


def noise(num_frames: int, size: int = 8, *, first: int = 0) -> torch.Tensor:
    return frame_noise(0, "test", range(first, first + num_frames), (4, size, size))


@pytest.fixture(scope="module")
def upsampler(tiny_folder: Path, image: load.ImageModel) -> Upsampler:
    return dependents.load_upsampler(tiny_folder / "upsample", base=image)


@pytest.fixture(scope="module")
def video_upsampler(
    tiny_folder: Path, image: load.ImageModel, upsampler: Upsampler
) -> VideoUpsampler:
    folder = tiny_folder / "upsample_video"
    return dependents.load_video_upsampler(folder, upsampler=upsampler, base=image)


@pytest.fixture(scope="module")
def interpolator(tiny_folder: Path, image: load.ImageModel) -> Interpolator:
    return dependents.load_interpolator(tiny_folder / "interpolate", base=image)


def silenced(module: Any) -> dict[str, torch.Tensor]:
    """Make temporal layers add nothing; return what they were."""
    kept = {}
    for name, parameter in module.named_parameters():
        if "motion_modules" in name and ".proj_out." in name:
            kept[name] = parameter.detach().clone()
            parameter.zero_()
    return kept


def test_temporal_upsampler_is_the_upsampler_but_for_its_temporal_layers(
    upsampler: Upsampler, video_upsampler: VideoUpsampler, image: load.ImageModel
) -> None:
    z, text = noise(6, 16), image.text.encode(["a"])
    known = upsampler.condition(noise(6), noise(6, first=9), 100)
    by_frame = upsampler.denoiser(100).predict(z, 501, text, known)
    together = video_upsampler.denoiser(100)
    assert (together.windowed, together.sample_length) == (True, 8)
    assert not torch.allclose(together.predict(z, 501, text, known), by_frame, atol=1e-3)
    with torch.no_grad():
        kept = silenced(video_upsampler.module)
        alone = together.predict(z, 501, text, known)
        for name, parameter in video_upsampler.module.named_parameters():
            if name in kept:
                parameter.copy_(kept[name])
    assert torch.allclose(alone, by_frame, atol=1e-5)


def test_temporal_upsampler_is_told_the_level_and_sees_other_frames(
    video_upsampler: VideoUpsampler, image: load.ImageModel
) -> None:
    z, text = noise(4, 16), image.text.encode(["a"])
    known = video_upsampler.condition(noise(4), noise(4, first=9), 20)
    before = video_upsampler.denoiser(20).predict(z, 501, text, known)
    assert not torch.allclose(
        video_upsampler.denoiser(300).predict(z, 501, text, known), before, atol=1e-6
    )
    other = torch.cat([z[:3], -z[3:]])
    after = video_upsampler.denoiser(20).predict(other, 501, text, known)
    assert not torch.allclose(after[0], before[0], atol=1e-6)
    many = noise(9, 16)
    with pytest.raises(ModelError, match="longer than the video model's 8"):
        video_upsampler.denoiser(20).predict(many, 501, text, many)
    with pytest.raises(ModelError, match="needs a condition"):
        video_upsampler.denoiser(20).predict(z, 501, text)


def test_temporal_layers_must_fit_the_upsampler(
    tmp_path: Path, upsampler: Upsampler, image: load.ImageModel
) -> None:
    tiny.save_motion_adapter(tmp_path / "wide", block_out_channels=(16, 32))
    with pytest.raises(ModelError, match="does not fit its base"):
        dependents.load_video_upsampler(tmp_path / "wide", upsampler=upsampler, base=image)


def test_condition_of_a_span_is_the_mask_and_what_is_known() -> None:
    first, last = noise(2)
    known = condition(first, last)
    assert known.shape == (5, 5, 8, 8)
    assert known[:, 0].flatten(1).amin(1).tolist() == [1, 0, 0, 0, 1]
    assert known[:, 0].flatten(1).amax(1).tolist() == [1, 0, 0, 0, 1]
    assert torch.equal(known[0, 1:], first)
    assert torch.equal(known[4, 1:], last)
    assert not known[1:4].any()


def test_cross_fade_goes_straight_from_one_frame_to_the_other() -> None:
    first, last = noise(2)
    fade = cross_fade(first, last)
    assert torch.equal(fade[0], first)
    assert torch.equal(fade[4], last)
    assert torch.allclose(fade[1], 0.75 * first + 0.25 * last)


def test_frames_between_are_the_cross_fade_and_what_layers_and_condition_change(
    tiny_folder: Path, interpolator: Interpolator, image: load.ImageModel
) -> None:
    text = image.text.encode(["a"])
    first, last = noise(2, first=20)
    found = interpolator.between(first, last, text, 2)

    diffusers = library("diffusers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tiny_folder / "image" / "unet").eval()
    adapter = diffusers.MotionAdapter.from_pretrained(tiny_folder / "interpolate")
    module = diffusers.UNetMotionModel.from_unet2d(unet, adapter).eval()
    mask = torch.tensor([1.0, 0, 0, 0, 1]).view(1, 1, 5, 1, 1).expand(1, 1, 5, 8, 8)
    kept = torch.stack([first, *[torch.zeros_like(first)] * 3, last], 1)[None]
    z = torch.stack([first + k / 4 * (last - first) for k in range(5)], 1)[None]
    words = text.repeat(5, 1, 1)
    with torch.no_grad():
        for timestep in (100, 50):
            together = module(torch.cat([z, mask, kept], 1), timestep, words).sample
            alone = unet(z[0].transpose(0, 1), timestep, words).sample
            z = z + (together - alone.transpose(0, 1)[None]) / 2
    assert torch.allclose(found, z[0, :, 1:-1].transpose(0, 1), atol=1e-5)
    assert not torch.allclose(found, cross_fade(first, last)[1:-1], atol=1e-2)


def test_untrained_layers_leave_the_cross_fade_as_it_is(
    tmp_path: Path, image: load.ImageModel
) -> None:
    tiny.save_interpolator(tmp_path / "untrained")
    model = dependents.load_interpolator(tmp_path / "untrained", base=image)
    with torch.no_grad():
        silenced(model.module)
        model.module.conv_in.weight[:, 4:] = 0
    first, last = noise(2)
    made = model.between(first, last, image.text.encode(["a"]), 3)
    assert torch.allclose(made, cross_fade(first, last)[1:-1], atol=1e-4)


def test_interpolator_leaves_the_image_models_first_convolution_alone(
    interpolator: Interpolator, image: load.ImageModel
) -> None:
    assert isinstance(image.denoiser, ImageDenoiser)
    own = image.denoiser.module.conv_in.weight
    assert own.shape[1] == 4
    assert torch.equal(interpolator.module.conv_in.weight[:, :4], own)


def test_adapter_without_channels_for_what_is_known_is_no_interpolator(
    tiny_folder: Path, tmp_path: Path, image: load.ImageModel
) -> None:
    with pytest.raises(ModelError, match="takes None channels"):
        dependents.load_interpolator(tiny_folder / "video", base=image)
    tiny.save_interpolator(tmp_path / "narrow", conv_in_channels=8)
    with pytest.raises(ModelError, match=r"takes 8 channels; .* takes 9"):
        dependents.load_interpolator(tmp_path / "narrow", base=image)
