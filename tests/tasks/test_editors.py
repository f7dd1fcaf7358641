"""Editors against diffusers' own pipelines, on the same weights, latents and generators."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentloom.errors import ModelError, RecipeError
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe
from latentloom.models.pretrained import library
from latentloom.models.reference import MEAN, STD
from latentloom.ops.edges import canny
from latentloom.schemas.edits import ControlNetEdit, InpaintEdit, T2IAdapterEdit
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.conditioning import make_condition
from latentloom.tasks.editors.controlnet import controlnet_latents
from latentloom.tasks.editors.img2img import img2img_latents
from latentloom.tasks.editors.inpaint import masked_hole, repaint_latents
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.editors.t2i_adapter import t2i_adapter_latents
from latentloom.tasks.tensors import frames_to_tensor
from tests.editing import (
    NUM_FRAMES,
    compile_edit,
    open_canvas,
    pipeline,
    settings,
    write_map,
    write_mask,
)
from tests.models import tiny
from tests.runs import run_here

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


def test_t2i_adapter_is_diffusers(tiny_models: Path, tiny_clip: Path, tmp_path: Path) -> None:
    use = {"adapter_conditioning_scale": 0.7}
    plan = compile_edit(
        tmp_path, tiny_models, tiny_clip, {"kind": "t2i_adapter", "t2i_adapter": use}
    )
    canvas = open_canvas(tmp_path, plan)
    stage = canvas.chunk.params(T2IAdapterEdit)
    condition = make_condition(
        canvas.chunk,
        stage.t2i_adapter[0],
        role="t2i_adapter.0",
        channels=1,
        frames=canvas.chunk.input_frames,
    )
    adapter = library("diffusers").T2IAdapter.from_pretrained(tiny_models / "t2i_adapter")
    made = pipeline("StableDiffusionAdapterPipeline", tiny_models, adapter=adapter)
    theirs = made(image=condition, height=16, width=16, **use, **settings(canvas)).images
    assert largest_difference(t2i_adapter_latents(canvas), theirs) <= MAX_DIFFERENCE


def test_t2i_adapter_acts_for_a_part_of_the_steps(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    results = []
    for factor in (0.25, 0.5, 1.0):
        use = {"adapter_conditioning_factor": factor}
        stage = {"kind": "t2i_adapter", "t2i_adapter": use}
        plan = compile_edit(tmp_path, tiny_models, tiny_clip, stage)
        results.append(t2i_adapter_latents(open_canvas(tmp_path, plan)))
    assert not torch.allclose(results[0], results[1], atol=1e-3)
    assert not torch.allclose(results[1], results[2], atol=1e-3)


@pytest.mark.parametrize("strength", [1.0, 0.75])
@pytest.mark.parametrize("model", ["image", "inpaint"])
def test_inpaint_is_diffusers(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path, model: str, strength: float
) -> None:
    stage = {"kind": "inpaint", "mask": "mask", "model": model, "strength": strength}
    mask = {"uri": str(write_mask(tmp_path / "mask.mkv"))}
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, stage, maps={"mask": mask})
    canvas = open_canvas(tmp_path, plan)
    hole = masked_hole(canvas.chunk)
    ours = repaint_latents(canvas, canvas.chunk.params(InpaintEdit), hole, strength=strength)
    white = torch.from_numpy(hole.mask[:, None]).float()
    known = canvas.encode_tensor(canvas.padded(frames_to_tensor(hole.frames)) * (1 - white))
    unet = library("diffusers").UNet2DConditionModel.from_pretrained(tiny_models / model / "unet")
    made = pipeline("StableDiffusionInpaintPipeline", tiny_models, unet=unet)
    theirs = made(
        image=encoded(canvas),
        mask_image=white,
        masked_image_latents=known,
        strength=strength,
        height=16,
        width=16,
        **settings(canvas),
    ).images
    assert largest_difference(ours, theirs) <= MAX_DIFFERENCE


def test_ip_adapter_is_diffusers(tiny_models: Path, tiny_clip: Path, tmp_path: Path) -> None:
    use = {"image": "look", "ip_adapter_scale": 0.6}
    maps = {"look": {"uri": str(write_map(tmp_path / "look.mkv", 1, size=40))}}
    stage = {"strength": 0.75, "ip_adapter": use}
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, stage, maps=maps)
    canvas = open_canvas(tmp_path, plan)
    ours = img2img_latents(canvas)
    plain = compile_edit(tmp_path, tiny_models, tiny_clip, {"strength": 0.75}, maps=maps)
    unseen = img2img_latents(open_canvas(tmp_path, plain))
    assert not torch.allclose(ours, unseen, atol=1e-2)

    made = pipeline("StableDiffusionImg2ImgPipeline", tiny_models)
    made.load_ip_adapter(
        str(tiny_models / "ip_adapter"), subfolder="", weight_name="ip-adapter.safetensors"
    )
    made.set_ip_adapter_scale(0.6)
    picture = torch.from_numpy(canvas.chunk.reference_frames("ip_adapter", 16)[:1])
    pixels = (picture.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / (
        torch.tensor(STD).view(1, 3, 1, 1)
    )
    arguments = settings(canvas) | {"image": encoded(canvas), "strength": 0.75}
    theirs = made(ip_adapter_image=pixels, **arguments).images
    assert largest_difference(ours, theirs) <= MAX_DIFFERENCE


def test_text_map_mask_and_reference_image_act_together(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    conditions: dict[str, Any] = {
        "controlnet": {"kind": "depth", "map": "depth"},
        "ip_adapter": {"image": "depth"},
    }
    stage = {"kind": "inpaint", "mask": "mask", "model": "inpaint", "num_inference_steps": 2}

    def run(**left_out: None) -> NDArray[Any]:
        plan = compile_edit(
            tmp_path,
            tiny_models,
            tiny_clip,
            stage | conditions | left_out,
            maps=side_inputs(tmp_path),
        )
        return edited(tmp_path, plan)

    whole = run()
    assert not np.array_equal(whole, run(controlnet=None))
    assert not np.array_equal(whole, run(ip_adapter=None))


def test_ip_adapter_of_another_unet_is_refused(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    tiny.save_ip_adapter(models / "ip_adapter", text_width=8)
    maps = {"look": {"uri": str(write_map(tmp_path / "look.mkv", 1))}}
    plan = compile_edit(tmp_path, models, tiny_clip, {"ip_adapter": {"image": "look"}}, maps=maps)
    with pytest.raises(ModelError, match=r"ip-adapter\.safetensors does not fit its base"):
        open_canvas(tmp_path, plan)


def test_variant_of_a_recipes_ip_adapter_reaches_its_image_encoder(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    weights = models / "ip_adapter" / "image_encoder" / "model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    named = {name: {"path": str(models / name)} for name in ("image", "ip_adapter")}
    named["ip_adapter"]["variant"] = "fp16"
    maps = {"look": {"uri": str(write_map(tmp_path / "look.mkv", 1))}}
    stage = {"ip_adapter": {"image": "look"}}
    plan = compile_edit(tmp_path, models, tiny_clip, stage, maps=maps, models=named)
    assert open_canvas(tmp_path, plan).reference is not None


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


def edited(folder: Path, plan: Plan) -> NDArray[Any]:
    """Run a plan, and return the frames of its last stage."""
    store = Store.open(str(folder / "store"))
    run_here(store, plan)
    return np.concatenate([store.read(chunk.key) for chunk in plan.stages[-1].chunks])


def side_inputs(folder: Path) -> dict[str, Any]:
    return {
        "depth": {"uri": str(write_map(folder / "depth.mkv"))},
        "mask": {"uri": str(write_mask(folder / "mask.mkv"))},
    }


CANNY = {"kind": "canny", "low_threshold": 20, "high_threshold": 60}
EDITS: dict[str, dict[str, Any]] = {
    "controlnet": {"controlnet": TWO},
    "canny": {"kind": "controlnet", "controlnet": CANNY},
    "t2i_adapter": {"t2i_adapter": {}, "strength": 0.75, "num_inference_steps": 2},
    "inpaint": {"mask": "mask", "model": "inpaint", "controlnet": TWO[1]},
    "img2img": {"ip_adapter": {"image": "depth"}, "num_inference_steps": 2},
    "outpaint": {"left": 3, "bottom": 5},
    "frames": {
        "map": "depth",
        "num_inference_steps": None,
        "guidance_scale": None,
    },
}


@pytest.mark.parametrize("kind", EDITS)
def test_any_chunking_gives_the_same_frames(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path, kind: str
) -> None:
    stage = {"kind": kind, "num_inference_steps": 1} | EDITS[kind]
    results = [
        edited(
            tmp_path,
            compile_edit(
                tmp_path,
                tiny_models,
                tiny_clip,
                stage,
                maps=side_inputs(tmp_path),
                chunks={"frames": size},
            ),
        )
        for size in (1, 4, 7, 16)
    ]
    assert results[0].std() > 1
    assert all(np.array_equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("channels", [1, 3])
def test_canny_is_made_from_the_frames_at_their_size(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path, channels: int
) -> None:
    stage = {"kind": "controlnet", "controlnet": CANNY}
    canvas = open_canvas(tmp_path, compile_edit(tmp_path, tiny_models, tiny_clip, stage))
    frames = canvas.chunk.input_frames()
    (use,) = canvas.chunk.params(ControlNetEdit).controlnet
    expected = canny(frames, low_threshold=20, high_threshold=60)
    assert expected.any()
    made = functools.partial(
        make_condition, canvas.chunk, use, role="controlnet.0", channels=channels
    )
    for found in (made(frames=lambda: frames), made(frames=lambda: frames.astype(np.uint16) << 8)):
        assert np.array_equal(found, np.repeat(expected, channels, axis=1))


def test_inpaint_changes_the_mask_alone(tiny_models: Path, tiny_clip: Path, tmp_path: Path) -> None:
    plans = [
        compile_edit(
            tmp_path,
            tiny_models,
            tiny_clip,
            {"kind": "inpaint", "mask": "mask", "overlay": overlay},
            maps=side_inputs(tmp_path),
        )
        for overlay in (True, False)
    ]
    pasted, passed = (edited(tmp_path, plan) for plan in plans)
    hole = masked_hole(open_canvas(tmp_path, plans[0]).chunk)
    assert np.array_equal(pasted[~hole.mask], hole.frames[~hole.mask])
    assert np.array_equal(pasted[hole.mask], passed[hole.mask])
    assert not np.array_equal(passed[~hole.mask], hole.frames[~hole.mask])


def test_outpaint_keeps_the_frame_inside_of_its_border(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, {"kind": "outpaint"} | EDITS["outpaint"])
    grown = edited(tmp_path, plan)
    source = open_canvas(tmp_path, plan).chunk.source_frames()
    assert grown.shape == (NUM_FRAMES, 21, 19, 3)
    assert np.array_equal(grown[:, :16, 3:], source)
    border = grown[:, 16:, 3:]
    assert not np.array_equal(border, np.repeat(source[:, -1:], 5, axis=1))


def test_frames_are_those_of_the_map(tiny_models: Path, tiny_clip: Path, tmp_path: Path) -> None:
    stage = {"kind": "frames"} | EDITS["frames"]
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, stage, maps=side_inputs(tmp_path))
    path = tmp_path / "depth.mkv"
    assert np.array_equal(
        edited(tmp_path, plan), FrameReader(path, probe(path)).read(0, NUM_FRAMES)
    )


def test_map_is_read_at_absolute_frames(tiny_models: Path, tiny_clip: Path, tmp_path: Path) -> None:
    stage = {"kind": "frames"} | EDITS["frames"]
    cut = {"uri": str(tiny_clip), "start": 0.25}
    changes = {"maps": side_inputs(tmp_path), "source": cut}
    plan = compile_edit(tmp_path, tiny_models, tiny_clip, stage, **changes)
    path = tmp_path / "depth.mkv"
    assert plan.start == 2
    assert np.array_equal(
        edited(tmp_path, plan), FrameReader(path, probe(path)).read(2, NUM_FRAMES)
    )


def test_controlnet_of_another_unet_is_refused(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    stage = {"kind": "controlnet", "controlnet": {"model": "other_control"}}
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    tiny.save_controlnet(models / "other_control", cross_attention_dim=8)
    with pytest.raises(
        RecipeError, match=r"'other_control' cannot steer .*dim': 8.* against .*dim': 16"
    ):
        compile_edit(tmp_path, models, tiny_clip, stage)


def test_t2i_adapter_of_another_unet_is_refused(
    tiny_models: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    models = Path(shutil.copytree(tiny_models, tmp_path / "models"))
    tiny.save_t2i_adapter(models / "t2i_adapter", channels=[8, 8])
    with pytest.raises(RecipeError, match=r"does not fit .*\(8, 4\)\] against .*\(16, 4\)\]"):
        compile_edit(tmp_path, models, tiny_clip, {"kind": "t2i_adapter", "t2i_adapter": {}})
