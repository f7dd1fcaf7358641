"""Editors against diffusers' own pipelines, on the same weights, latents and generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.models.pretrained import library
from latentloom.schemas.edits import ControlNetEdit
from latentloom.tasks.conditioning import make_condition
from latentloom.tasks.editors.controlnet import controlnet_latents
from latentloom.tasks.editors.img2img import img2img_latents
from latentloom.tasks.editors.latents import Canvas
from tests.editing import compile_edit, open_canvas, pipeline, settings, write_map

MAX_DIFFERENCE = 1e-5


def encoded(canvas: Canvas) -> torch.Tensor:
    return canvas.encode(canvas.chunk.input_frames())


def largest_difference(ours: torch.Tensor, theirs: Any) -> float:
    assert ours.shape == theirs.shape
    assert float(ours.std()) > 0.1
    return float((ours - theirs).abs().max())


def test_img2img_is_diffusers(tiny_models: Path, tiny_clip: Path, tmp_path: Path) -> None:
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, {"strength": 0.75})
    canvas = open_canvas(tmp_path, plan)
    theirs = pipeline("StableDiffusionImg2ImgPipeline", tiny_models)(
        image=encoded(canvas), strength=0.75, **settings(canvas)
    ).images
    assert largest_difference(img2img_latents(canvas), theirs) <= MAX_DIFFERENCE


TWO = [
    {"model": "control", "controlnet_conditioning_scale": 0.7, "control_guidance_end": 0.6},
    {"model": "colour_control", "kind": "depth", "map": "depth", "control_guidance_start": 0.3},
]


@pytest.mark.parametrize("strength", [1.0, 0.75])
def test_controlnets_are_diffusers(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path, strength: float
) -> None:
    stage = {"kind": "controlnet", "controlnet": TWO, "strength": strength}
    depth = {"uri": str(write_map(tmp_path / "depth.mkv"))}
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, stage, maps={"depth": depth})
    canvas = open_canvas(tmp_path, plan)
    ours = controlnet_latents(canvas)
    uses = canvas.chunk.params(ControlNetEdit).controlnet
    conditions = [
        make_condition(
            canvas.chunk,
            use,
            role=f"controlnet.{index}",
            channels=channels,
            frames=canvas.chunk.input_frames,
        )
        for index, (use, channels) in enumerate(zip(uses, (1, 3), strict=True))
    ]
    nets = [
        library("diffusers").ControlNetModel.from_pretrained(tiny_models / use.model)
        for use in uses
    ]
    arguments: dict[str, Any] = settings(canvas) | {
        "controlnet_conditioning_scale": [0.7, 1.0],
        "control_guidance_start": [0.0, 0.3],
        "control_guidance_end": [0.6, 1.0],
    }
    if strength == 1:
        made = pipeline("StableDiffusionControlNetPipeline", tiny_models, controlnet=nets)
        theirs = made(image=conditions, **arguments).images
    else:
        made = pipeline("StableDiffusionControlNetImg2ImgPipeline", tiny_models, controlnet=nets)
        theirs = made(
            image=encoded(canvas), control_image=conditions, strength=strength, **arguments
        ).images
    assert largest_difference(ours, theirs) <= MAX_DIFFERENCE
