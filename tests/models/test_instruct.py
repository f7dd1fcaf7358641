"""InstructPix2Pix is diffusers' pipeline, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models import dependents, load
from latentloom.models.instruct import instruct_predictor, source_latents
from latentloom.models.offload import Placement
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import denoise
from tests.models import tiny

NUM_FRAMES, NUM_STEPS = 3, 4
GUIDANCE: dict[str, Any] = {"guidance_scale": 3.0, "image_guidance_scale": 1.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_instruct_pipeline(tmp_path_factory.mktemp("instruct"))


@pytest.fixture(scope="module")
def instruct(folder: Path) -> load.ImageModel:
    return dependents.load_instruct_model(folder)


def frames() -> torch.Tensor:
    return torch.rand(NUM_FRAMES, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(NUM_FRAMES)]


def edit(model: load.ImageModel, micro_batch: int = 2) -> torch.Tensor:
    predict = instruct_predictor(
        model.denoiser,
        source_latents(model.vae, frames()),
        model.text.encode(["make it blue"]),
        negative=model.text.encode(["blurry"]),
        micro_batch=micro_batch,
        **GUIDANCE,
    )
    noise = torch.stack([torch.randn(4, 8, 8, generator=one) for one in generators()])
    return denoise(noise, predict, model.sampler(NUM_STEPS))


def test_edit_is_what_diffusers_pipeline_makes(folder: Path, instruct: load.ImageModel) -> None:
    scheduler = tiny.diffusers.DDIMScheduler.from_pretrained(
        folder / "scheduler", clip_sample=False
    )
    pipeline = tiny.diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        folder, scheduler=scheduler, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["make it blue"] * NUM_FRAMES,
        image=(frames() + 1) / 2,
        negative_prompt=["blurry"] * NUM_FRAMES,
        num_inference_steps=NUM_STEPS,
        generator=generators(),
        output_type="latent",
        **GUIDANCE,
    ).images
    ours = edit(instruct)
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5
    decoded = pipeline.image_processor.postprocess(
        pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample, output_type="pt"
    )
    assert (instruct.vae.decode_latents(ours) - (2 * decoded - 1)).abs().max() <= 2e-5


def test_source_is_fed_without_the_scaling_factor(tmp_path: Path) -> None:
    plain = load.load_vae(tiny.save_vae(tmp_path / "plain", latents_mean=None, latents_std=None))
    known = load.load_vae(tiny.save_vae(tmp_path / "known"))
    raw = plain.encode_latents(frames()) / 0.5
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 1.0, 2.0, 1.5])
    whitened = (raw - mean.view(4, 1, 1)) / std.view(4, 1, 1)
    assert torch.allclose(source_latents(plain, frames()), raw, atol=1e-6)
    assert torch.allclose(source_latents(known, frames()), whitened, atol=1e-5)


def test_scales_of_one_take_one_pass_and_need_no_negative(instruct: load.ImageModel) -> None:
    z, text = frame_noise(0, "a", range(3), (4, 8, 8)), instruct.text.encode(["a"])
    source = source_latents(instruct.vae, frames())
    ones: dict[str, Any] = {"guidance_scale": 1.0, "image_guidance_scale": 1.0}
    alone = instruct_predictor(instruct.denoiser, source, text, **ones)(z, 501)
    padded = [torch.cat([part, part[-1:].expand(5, -1, -1, -1)]) for part in (z, source)]
    assert torch.equal(
        alone, instruct.denoiser.predict(padded[0], 501, text, padded[1])[:NUM_FRAMES]
    )
    with pytest.raises(ModelError, match=r"image guidance 1\.8 need"):
        instruct_predictor(instruct.denoiser, source, text, **GUIDANCE)


def test_source_latents_of_another_shape_are_refused(instruct: load.ImageModel) -> None:
    z, text = torch.zeros(2, 4, 8, 8), instruct.text.encode(["a"])
    with pytest.raises(ModelError, match=r"\(2, 4, 8, 8\) .* got none"):
        instruct.denoiser.predict(z, 501, text)
    with pytest.raises(ModelError, match=r"got shape \(2, 4, 4, 4\)"):
        instruct.denoiser.predict(z, 501, text, torch.zeros(2, 4, 4, 4))


def test_unet_alone_takes_vae_and_text_of_its_base(folder: Path, tmp_path: Path) -> None:
    for part in ("unet", "scheduler"):
        (tmp_path / part).symlink_to(folder / part)
    base = load.load_image_model(tiny.save_image_pipeline(tmp_path / "base"))
    model = dependents.load_instruct_model(tmp_path, base=base)
    assert (model.vae, model.text) == (base.vae, base.text)
    with pytest.raises(ModelError, match="name it with `base`"):
        dependents.load_instruct_model(tmp_path)


def test_another_model_is_refused_with_its_channels(tmp_path: Path) -> None:
    tiny.save_image_pipeline(tmp_path)
    with pytest.raises(ModelError, match=r"maps 4 channels to 4; .* maps 8 to 4"):
        dependents.load_instruct_model(tmp_path)


def test_scheduler_and_offload_are_those_asked_for(folder: Path, tmp_path: Path) -> None:
    changes = (("timestep_spacing", "trailing"),)
    instruct = dependents.load_instruct_model(
        folder, scheduler=changes, placement=Placement(offload=True)
    )
    assert instruct.sampler(2).timesteps[0] == 999
    assert dependents.load_instruct_model(folder).sampler(2).timesteps[0] != 999
    assert instruct.placement.offload
    base = load.load_image_model(
        tiny.save_image_pipeline(tmp_path / "image"), placement=Placement(offload=True)
    )
    tiny.save_inpaint_unet(tmp_path / "inpaint")
    on_base = dependents.load_inpaint_model(
        tmp_path / "inpaint", base=base, placement=Placement(offload=True)
    )
    assert on_base.placement.offload
    assert on_base.schedule.config == base.schedule.config
    trailing = dependents.load_inpaint_model(tmp_path / "inpaint", base=base, scheduler=changes)
    assert trailing.sampler(2).timesteps[0] == 999
