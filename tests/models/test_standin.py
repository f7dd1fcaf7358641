from __future__ import annotations

import time

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models import load
from latentloom.models.predict import predictor
from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import denoise, invert


@pytest.fixture(scope="module")
def still() -> load.ImageModel:
    return load.load_image_model("embedded:standin/image")


@pytest.fixture(scope="module")
def moving(still: load.ImageModel) -> load.VideoModel:
    return load.load_video_model("embedded:standin/video", base=still)


def test_it_is_shaped_like_stable_diffusion(
    still: load.ImageModel, moving: load.VideoModel
) -> None:
    assert still.vae.encode_latents(torch.zeros(2, 3, 64, 32)).shape == (2, 4, 8, 4)
    assert still.vae.decode_latents(torch.zeros(2, 4, 8, 4)).shape == (2, 3, 64, 32)
    assert (still.denoiser.windowed, moving.denoiser.windowed) == (False, True)
    assert moving.vae is still.vae
    assert moving.text is still.text


def test_flat_blocks_survive_the_vae(still: load.ImageModel) -> None:
    blocks = torch.rand(2, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    back = still.vae.decode_latents(still.vae.encode_latents(blocks))
    assert torch.allclose(back, blocks, atol=1e-5)


def test_results_depend_on_pixels_text_and_timestep(still: load.ImageModel) -> None:
    z = frame_noise(0, "test", range(2), (4, 4, 4))
    one, two = still.text.encode(["one"]), still.text.encode(["two"])
    results = [
        still.denoiser.predict(z, 501, one),
        still.denoiser.predict(z.flip(0), 501, one),
        still.denoiser.predict(z, 1, one),
        still.denoiser.predict(z, 501, two),
    ]
    assert all(not torch.allclose(results[0], other, atol=1e-4) for other in results[1:])


def test_only_the_windowed_one_sees_neighbours(
    still: load.ImageModel, moving: load.VideoModel
) -> None:
    z, text = frame_noise(0, "test", range(5), (4, 4, 4)), still.text.encode(["a"])
    for model, same in ((still, True), (moving, False)):
        whole = model.denoiser.predict(z, 501, text)
        alone = model.denoiser.predict(z[2:3], 501, text)
        assert torch.equal(whole[2:3], alone) == same


@pytest.mark.parametrize("size", [16, 24])
def test_any_chunking_gives_the_same_bytes(still: load.ImageModel, size: int) -> None:
    frames, text = torch.rand(7, 3, size, size), still.text.encode(["a"])
    sampler = still.sampler(3)

    def edit(part: torch.Tensor) -> torch.Tensor:
        z = in_micro_batches(still.vae.encode_latents, 4, part)
        predict = predictor(still.denoiser, text, micro_batch=4)
        z = denoise(invert(z, predict, sampler), predict, sampler)
        return in_micro_batches(still.vae.decode_latents, 4, z)

    assert torch.equal(edit(frames), torch.cat([edit(frames[:3]), edit(frames[3:])]))


def test_sampling_stays_bounded(moving: load.VideoModel) -> None:
    z, text = frame_noise(0, "test", range(8), (4, 8, 8)), moving.text.encode(["a"])
    out = denoise(z, predictor(moving.denoiser, text), moving.sampler(10))
    assert 0.2 < float(out.std()) < 5


def test_large_frames_are_cheap(still: load.ImageModel) -> None:
    frames, text = torch.zeros(16, 3, 512, 512), still.text.encode(["a"])
    z = still.vae.encode_latents(frames)
    still.denoiser.predict(z, 501, text)
    # Bounds with room for a busy machine: 15 ms and 2 ms on two idle cores.
    began = time.perf_counter()
    still.vae.encode_latents(frames)
    assert time.perf_counter() - began < 0.5
    began = time.perf_counter()
    still.denoiser.predict(z, 501, text)
    assert time.perf_counter() - began < 0.1


def test_what_it_cannot_do_is_refused(still: load.ImageModel, moving: load.VideoModel) -> None:
    text = still.text.encode(["a"])
    with pytest.raises(ModelError, match="without a ControlNet"):
        still.denoiser.predict(torch.zeros(1, 4, 2, 2), 1, text, torch.zeros(1, 1, 16, 16))
    with pytest.raises(ModelError, match="65 frames is longer than 64"):
        moving.denoiser.predict(torch.zeros(65, 4, 2, 2), 1, text)
    with pytest.raises(ModelError, match="do not divide by 8"):
        still.vae.encode_latents(torch.zeros(1, 3, 12, 8))
