from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models import dependents, load
from latentloom.models.control import ControlNet, with_control
from latentloom.models.image import ImageDenoiser
from latentloom.models.predict import predictor
from latentloom.models.protocols import Denoiser
from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import denoise, invert
from tests.models import tiny


def latents(num_frames: int = 6, start: int = 0) -> torch.Tensor:
    return frame_noise(0, "test", range(start, start + num_frames), (4, 8, 8))


@pytest.fixture(scope="session")
def control_net(tiny_folder: Path, image: load.ImageModel) -> ControlNet:
    return dependents.load_controlnet(tiny_folder / "control", base=image)


def edit(image: load.ImageModel, start: int, stop: int) -> torch.Tensor:
    """Encode, invert, denoise and decode some of 7 frames."""
    frames = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    predict = predictor(image.denoiser, image.text.encode(["a red circle"]), micro_batch=3)
    sampler = image.sampler(1)
    z = in_micro_batches(image.vae.encode_latents, 3, frames[start:stop])
    z = denoise(invert(z, predict, sampler), predict, sampler)
    return in_micro_batches(image.vae.decode_latents, 3, z)


@pytest.fixture
def whole(image: load.ImageModel) -> torch.Tensor:
    return edit(image, 0, 7)


@pytest.mark.parametrize("cuts", [(3,), (4,), (1, 2), (2, 5), (1, 3, 6)])
def test_any_chunking_gives_the_same_bytes(
    image: load.ImageModel, whole: torch.Tensor, cuts: tuple[int, ...]
) -> None:
    edges = [0, *cuts, 7]
    parts = [edit(image, a, b) for a, b in itertools.pairwise(edges)]
    assert torch.equal(whole, torch.cat(parts))


def test_memory_layout_of_the_input_changes_no_bit(image: load.ImageModel) -> None:
    text, z = image.text.encode(["a"]), latents(3)
    other = z.to(memory_format=torch.channels_last)
    predict = predictor(image.denoiser, text, micro_batch=3)
    assert torch.equal(predict(z, 501), predict(other, 501))
    assert torch.equal(
        image.denoiser.predict(z, 501, text), image.denoiser.predict(other, 501, text)
    )
    assert torch.equal(image.vae.decode_latents(z), image.vae.decode_latents(other))
    assert image.vae.encode_latents(torch.zeros(3, 3, 16, 16)).is_contiguous()


def test_each_frame_may_have_a_text(image: load.ImageModel) -> None:
    texts = image.text.encode(["a", "b", "a", "b", "a", "b"])
    eps = predictor(image.denoiser, texts, micro_batch=4)(latents(), 501)
    for index, word in enumerate("ab"):
        alone = predictor(image.denoiser, image.text.encode([word]), micro_batch=4)(latents(), 501)
        assert torch.equal(eps[index::2], alone[index::2])


def test_guidance_is_the_formula(image: load.ImageModel) -> None:
    text, negative = image.text.encode(["a"]), image.text.encode([""])
    z = latents()
    cond = predictor(image.denoiser, text)(z, 501)
    uncond = predictor(image.denoiser, negative)(z, 501)
    guided = predictor(image.denoiser, text, negative=negative, guidance=7.5)(z, 501)
    assert torch.allclose(guided, uncond + 7.5 * (cond - uncond), atol=1e-5)
    plain = predictor(image.denoiser, text, negative=negative, guidance=1.0)(z, 501)
    assert torch.equal(plain, cond)


def test_guidance_needs_a_negative_text(image: load.ImageModel) -> None:
    with pytest.raises(ModelError, match=r"guidance 7\.5"):
        predictor(image.denoiser, image.text.encode(["a"]), guidance=7.5)


@pytest.mark.parametrize("name", ["video", "video3d"])
def test_video_models_see_the_order_of_frames(name: str, request: pytest.FixtureRequest) -> None:
    model: load.VideoModel = request.getfixturevalue(name)
    text, z = model.text.encode(["a"]), latents()
    eps = model.denoiser.predict(z, 501, text)
    assert eps.shape == z.shape
    backwards = model.denoiser.predict(z.flip(0), 501, text).flip(0)
    assert not torch.allclose(eps, backwards, atol=1e-4)


def test_motion_model_reads_a_text_for_each_frame_and_a_3d_one_refuses(
    video: load.VideoModel, video3d: load.VideoModel
) -> None:
    texts = video.text.encode(list("abcdef"))
    same = video.denoiser.predict(latents(), 501, texts[:1].repeat(6, 1, 1))
    assert torch.equal(same, video.denoiser.predict(latents(), 501, texts[:1]))
    assert not torch.allclose(same, video.denoiser.predict(latents(), 501, texts))
    with pytest.raises(ModelError, match="one prompt a window"):
        video3d.denoiser.predict(latents(), 501, video3d.text.encode(list("abcdef")))


def test_window_longer_than_the_motion_model_is_refused(video: load.VideoModel) -> None:
    with pytest.raises(ModelError, match=r"9 frames is longer .* 8; lower windows.size"):
        video.denoiser.predict(latents(9), 501, video.text.encode(["a"]))


@pytest.mark.parametrize("name", ["image", "video"])
def test_controlnet_steers_image_and_motion_models(
    name: str, request: pytest.FixtureRequest, control_net: ControlNet
) -> None:
    model: load.ImageModel | load.VideoModel = request.getfixturevalue(name)
    text, z = model.text.encode(["a"]), latents()
    condition = (torch.arange(6 * 256).view(6, 1, 16, 16) % 7 == 0).float()
    steered = with_control(model.denoiser, control_net)
    plain = predictor(model.denoiser, text, micro_batch=4)(z, 501)
    eps = predictor(steered, text, control=condition, micro_batch=4)(z, 501)
    assert not torch.allclose(eps, plain, atol=1e-3)
    off = with_control(model.denoiser, control_net, scale=0.0)
    unsteered = predictor(off, text, control=condition, micro_batch=4)(z, 501)
    assert torch.allclose(unsteered, plain, atol=1e-6)


def test_controlled_image_frames_stay_independent(
    image: load.ImageModel, control_net: ControlNet
) -> None:
    steered = with_control(image.denoiser, control_net)
    text, condition = image.text.encode(["a"]), torch.rand(6, 1, 16, 16)
    whole = predictor(steered, text, control=condition, micro_batch=4)(latents(), 501)
    late = predictor(steered, text, control=condition[5:], micro_batch=4)(latents(1, 5), 501)
    assert torch.equal(whole[5:], late)


def test_control_and_controlnet_come_together(
    image: load.ImageModel, control_net: ControlNet
) -> None:
    text, condition = image.text.encode(["a"]), torch.rand(6, 1, 16, 16)
    steered: Denoiser = with_control(image.denoiser, control_net)
    with pytest.raises(ModelError, match="given 0 conditions"):
        steered.predict(latents(), 501, text)
    with pytest.raises(ModelError, match="without a ControlNet"):
        image.denoiser.predict(latents(), 501, text, condition)
    with pytest.raises(ModelError, match=r"takes 1 channels .* \(6, 3, 16, 16\)"):
        steered.predict(latents(), 501, text, condition.expand(6, 3, 16, 16))


def test_upsampler_condition_is_noised_then_repeated(
    tiny_folder: Path, image: load.ImageModel
) -> None:
    up = dependents.load_upsampler(tiny_folder / "upsample", base=image)
    small, noise = latents(), latents(6, 10)
    condition = up.condition(small, noise, 100)
    alpha_bar = up.schedule.alphas_cumprod()[100]
    wanted = alpha_bar.sqrt() * small + (1 - alpha_bar).sqrt() * noise
    assert condition.shape == (6, 4, 16, 16)
    for corner in (condition[:, :, ::2, ::2], condition[:, :, 1::2, 1::2]):
        assert torch.allclose(corner, wanted, atol=1e-6)


def test_upsampler_reads_condition_level_and_text(
    tiny_folder: Path, image: load.ImageModel
) -> None:
    up = dependents.load_upsampler(tiny_folder / "upsample", base=image)
    texts = image.text.encode(["a", "b"])
    z = frame_noise(0, "large", range(2), (4, 16, 16))
    condition = up.condition(latents(2), latents(2, 10), 20)
    results = [
        predictor(up.denoiser(20), texts[:1], control=condition)(z, 501),
        predictor(up.denoiser(20), texts[:1], control=-condition)(z, 501),
        predictor(up.denoiser(300), texts[:1], control=condition)(z, 501),
        predictor(up.denoiser(20), texts[1:], control=condition)(z, 501),
    ]
    assert all(not torch.allclose(results[0], other, atol=1e-6) for other in results[1:])
    with pytest.raises(ModelError, match="needs a condition"):
        up.denoiser(20).predict(z, 501, texts[:1])


def test_v_prediction_is_handed_over_as_noise(
    tiny_folder: Path, tmp_path: Path, image: load.ImageModel
) -> None:
    folder = shutil.copytree(tiny_folder / "image", tmp_path / "v")
    tiny.save_scheduler(folder / "scheduler", prediction_type="v_prediction")
    model = load.load_image_model(folder)
    assert isinstance(image.denoiser, ImageDenoiser)
    z, text = latents(), model.text.encode(["a"])
    raw = image.denoiser.predict(z, 501, text)
    alpha_bar = model.schedule.alphas_cumprod()[501]
    wanted = alpha_bar.sqrt() * raw + (1 - alpha_bar).sqrt() * z
    assert torch.allclose(model.denoiser.predict(z, 501, text), wanted, atol=1e-5)
