"""The embedded family loads through the code that any other folder takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from latentloom.models import dependents, load
from latentloom.models.contrastive import load_contrastive
from latentloom.models.control import with_control
from latentloom.models.predict import predictor
from latentloom.models.schedulers import check_agree
from latentloom.ops.noise import frame_noise
from latentloom.sprites.caption import caption
from latentloom.sprites.edits import Task, draw_edit
from latentloom.sprites.render import render
from latentloom.tasks.tensors import frames_to_tensor

EMBEDDED = Path(load.__file__).parent / "embedded"


@pytest.fixture(scope="module")
def sprites() -> load.ImageModel:
    return load.load_image_model("embedded:sprites/image")


def test_video_control_and_upsampler_fit_the_image_model(sprites: load.ImageModel) -> None:
    video = load.load_video_model("embedded:sprites/video", base=sprites)
    control_net = dependents.load_controlnet("embedded:sprites/control", base=sprites)
    upsampler = dependents.load_upsampler("embedded:sprites/upsample", base=sprites)
    check_agree(
        {"image": sprites.sampler(20), "video": video.sampler(20), "up": upsampler.sampler(20)}
    )
    text = sprites.text.encode(["a red circle"])
    z = frame_noise(0, "test", range(2), (4, 16, 16))
    for denoiser in (sprites.denoiser, video.denoiser):
        steered = with_control(denoiser, control_net)
        eps = predictor(steered, text, control=torch.zeros(2, 1, 64, 64), micro_batch=2)(z, 501)
        assert eps.shape == z.shape
        assert bool(eps.isfinite().all())


def test_latents_are_those_the_denoiser_was_trained_on(sprites: load.ImageModel) -> None:
    assert (sprites.vae.downscale, sprites.vae.channels) == (4, 4)
    assert sprites.schedule.prediction_type == "v_prediction"
    assert sprites.text.encode([""]).shape == (1, 32, 128)


@pytest.mark.parametrize("task", ["recolour", "background", "style"])
def test_contrastive_model_prefers_what_a_frame_shows(task: Task) -> None:
    model = load_contrastive("embedded:sprites/contrastive")
    for seed in range(1_000_000, 1_000_008):
        shown, other = draw_edit(task, seed)
        frames = model.embed_frames(frames_to_tensor(render(shown, 1)))
        texts = [caption(scene, motion=False) for scene in (shown, other)]
        right, wrong = (frames @ model.embed_texts(texts).T)[0].tolist()
        assert right > wrong + 0.05


def test_no_configuration_names_a_path_of_the_machine_that_trained_it() -> None:
    for path in EMBEDDED.rglob("*.json"):
        names = re.findall(r'"_name_or_path": "([^"]*)"', path.read_text())
        assert not [name for name in names if name and not name.startswith("embedded:")], path
