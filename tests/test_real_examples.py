"""Recipes for published checkpoints plan and run on tiny checkpoints of the same classes and layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch

from latentloom.errors import ModelError, RecipeError
from latentloom.flows.api import open_latents
from latentloom.flows.compile import compile_plan
from latentloom.flows.resolve import resolve
from latentloom.media.probe import probe
from latentloom.schemas.load import load_recipe, validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.loading import PlanModels
from tests.editing import write_map, write_mask
from tests.models import tiny
from tests.runs import make_clip, run_here

REAL = Path(__file__).resolve().parents[1] / "examples" / "real"
PARTS = {
    "sd15-zeroscope": {"image": "image", "video": "video3d"},
    "sd15-animatediff": {"image": "image", "linear": "image", "video": "video"},
    "sd15-controlnet": {"image": "image", "video": "video", "control": "control"},
    "sd-x4-upscale": {"upscale": "upscaler"},
    "sd15-ip-adapter": {"image": "image", "ip_adapter": "ip_adapter"},
    "sd15-t2i-adapter": {"image": "image", "t2i_adapter": "t2i_adapter"},
    "sd15-inpaint": {"image": "inpaint"},
    "sd15-outpaint": {"image": "inpaint"},
    "sd15-prompt2prompt": {"image": "image"},
    "instruct-pix2pix": {"instruct": "instruct"},
    "sd15-mixed-inversion": {"image": "image", "control": "control", "video": "video3d"},
}
SHORT = "source.duration=0.5"
CHANGES = {
    "sd15-ip-adapter": [SHORT, "maps.look.uri={desk}/look.mkv"],
    "sd15-t2i-adapter": [SHORT],
    "sd15-inpaint": [SHORT, "maps.mask.uri={desk}/mask.mkv"],
    "sd15-outpaint": [SHORT, "stages.edit.left=8", "stages.edit.right=8"],
    "sd15-prompt2prompt": [SHORT],
    "instruct-pix2pix": [SHORT],
    "sd15-mixed-inversion": [SHORT],
}
NUMERICS = ("threads=1", "device=cpu")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a clip and with tiny checkpoints."""
    folder = tmp_path_factory.mktemp("real")
    make_clip(folder / "clip.mp4", 10)
    tiny.save_image_pipeline(folder / "image")
    tiny.save_motion_adapter(folder / "video")
    tiny.save_video_pipeline(folder / "video3d")
    tiny.save_controlnet(folder / "control", conditioning_channels=3)
    tiny.save_upscaler(folder / "upscaler")
    tiny.save_t2i_adapter(folder / "t2i_adapter")
    tiny.save_image_pipeline(folder / "inpaint")
    tiny.save_inpaint_unet(folder / "inpaint")
    tiny.save_instruct_pipeline(folder / "instruct")
    adapter = tiny.save_ip_adapter(folder / "ip_adapter" / "models")
    shutil.copy(adapter / "ip-adapter.safetensors", adapter / "ip-adapter_sd15.safetensors")
    write_map(folder / "look.mkv", 1, size=40)
    write_mask(folder / "mask.mkv", size=32)
    return folder


def make_plan(desk: Path, store: Store, name: str, *more: str) -> Plan:
    """Compile a recipe with its models and sizes replaced, and its settings as they are."""
    overrides = [f"source.uri={desk}/clip.mp4", f"output.uri={store.uri}/../out/{name}.mp4"]
    overrides += ["source.size.width=32", "source.size.height=32", "output.segment_seconds=1"]
    overrides += [f"numerics.{field}" for field in NUMERICS]
    overrides += ["windows.size=8", "windows.overlap=2"]
    overrides += [change.format(desk=desk) for change in CHANGES.get(name, ())]
    for model, folder in PARTS[name].items():
        overrides += [f"models.{model}.repo_id=null", f"models.{model}.revision=null"]
        overrides += [f"models.{model}.variant=null", f"models.{model}.path={desk / folder}"]
    recipe = load_recipe(REAL / f"{name}.yaml", overrides)
    stages = [stage for stage in recipe.stages if hasattr(stage, "num_inference_steps")]
    steps = [stage.name for stage in stages if stage.op in ("invert", "edit", "upscale")]
    overrides += [f"stages.{stage}.num_inference_steps=2" for stage in steps]
    recipe = load_recipe(REAL / f"{name}.yaml", [*overrides, *more])
    return compile_plan(recipe, resolve(recipe, store))


def test_every_real_recipe_is_tried() -> None:
    assert sorted(path.stem for path in REAL.glob("*.yaml")) == sorted(PARTS)


@pytest.mark.parametrize("name", PARTS)
def test_real_recipe_plans_and_runs_on_tiny_checkpoints(
    desk: Path, tmp_path: Path, name: str
) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = make_plan(desk, store, name, "numerics.dtype=float32")
    state = run_here(store, plan)
    assert state.state == "finished"
    assert Path(str(state.output)).stat().st_size > 0


def test_lora_of_a_recipe_reaches_the_models_that_it_runs(desk: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    matrices = {f"unet.{name}.lora_A.weight": torch.ones(2, 8)}
    matrices[f"unet.{name}.lora_B.weight"] = torch.ones(8, 2)
    safetensors.torch.save_file(matrices, tmp_path / "lora.safetensors")
    weights, keys = [], []
    for loras in ("[]", f"[{{path: {tmp_path}/lora.safetensors, scale: 0.5}}]"):
        changes = ("numerics.dtype=float32", f"models.image.loras={loras}")
        plan = make_plan(desk, store, "sd15-controlnet", *changes)
        models = PlanModels(plan)
        pair = models.image("image").denoiser, models.video("video").denoiser
        weights.append([one.module.get_submodule(name).weight for one in cast(Any, pair)])
        keys.append({stage.name: stage.key for stage in plan.stages})
    for plain, changed in zip(*weights, strict=True):
        torch.testing.assert_close(changed, plain + 0.5 * 2, atol=1e-6, rtol=0)
    # The VAE's part has another key too: a LoRA is part of its whole model.
    assert {n for n in keys[0] if keys[0][n] == keys[1][n]} <= {"decode_video", "encode_video"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coarser_types_run_from_end_to_end(desk: Path, tmp_path: Path, dtype: str) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = make_plan(desk, store, "sd15-zeroscope", f"numerics.dtype={dtype}")
    assert {model.dtype for model in plan.facts.models.values()} == {dtype}
    state = run_here(store, plan)
    fused = np.asarray(open_latents(state.run, "fuse", store=store.uri))
    assert np.isfinite(fused.astype(np.float32)).all()


def test_upscaled_video_has_four_times_the_width_and_height(desk: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    changes = ["numerics.dtype=float32", "source.size.width=20", "source.size.height=18"]
    changes.append("stages.upscale.keep=true")
    found = []
    for frames in (3, 16):
        plan = make_plan(desk, store, "sd-x4-upscale", *changes, f"chunks.frames={frames}")
        state = run_here(store, plan, overwrite=True)
        found.append(np.asarray(open_latents(state.run, "upscale", store=store.uri)))
        info = probe(Path(str(state.output)))
        assert (info.width, info.height, len(info.pts)) == (80, 72, 10)
    assert found[0].shape == (10, 72, 80, 3)
    assert np.array_equal(found[0], found[1])


def test_offload_is_in_no_key(desk: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    one, other = (
        make_plan(desk, store, "sd15-zeroscope", f"numerics.offload={value}")
        for value in ("none", "model")
    )
    assert [stage.key for stage in one.stages] == [stage.key for stage in other.stages]


def test_animatediff_on_another_schedule_than_its_partner_is_refused_with_both(
    desk: Path, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(RecipeError, match=r"beta_schedule linear .*scaled_linear|levels"):
        make_plan(desk, store, "sd15-animatediff", "models.video.base=image")


def test_video_model_of_another_latent_space_is_refused_with_the_cosine(
    desk: Path, tmp_path: Path
) -> None:
    other = tiny.save_video_pipeline(tmp_path / "other")
    tiny.save_vae(other / "vae", seed=5)
    store = Store.open(str(tmp_path / "store"))
    changes = [f"models.video.path={other}", "numerics.dtype=float32"]
    models = PlanModels(make_plan(desk, store, "sd15-zeroscope", *changes))
    with pytest.raises(ModelError, match=r"cosine .* on a test card"):
        models.video("video")
    named = PlanModels(make_plan(desk, store, "sd15-zeroscope", *changes, "models.video.vae=image"))
    assert named.video("video").vae is named.image("image").vae


def test_latents_of_another_model_are_refused_whatever_the_models_are_called(
    desk: Path, tmp_path: Path
) -> None:
    painter = tiny.save_image_pipeline(tmp_path / "painter")
    tiny.save_vae(painter / "vae", seed=5)
    store = Store.open(str(tmp_path / "store"))
    changes = [f"models.painter.path={painter}", "stages.encode.model=painter"]
    models = PlanModels(
        make_plan(desk, store, "sd15-zeroscope", *changes, "numerics.dtype=float32")
    )
    assert models.video("video").vae is models.image("image").vae
    with pytest.raises(ModelError, match=r"cosine .* on a test card"):
        models.denoising("video")


def test_latents_that_went_through_frames_may_be_of_another_family(
    desk: Path, tmp_path: Path
) -> None:
    painter = tiny.save_image_pipeline(tmp_path / "painter")
    tiny.save_vae(painter / "vae", seed=5)
    store = Store.open(str(tmp_path / "store"))
    plan = make_plan(desk, store, "sd15-zeroscope", f"models.painter.path={painter}")
    recipe = plan.recipe.model_dump(mode="json", exclude_unset=True)
    through = [
        {"op": "encode", "name": "there", "model": "painter"},
        {"op": "decode", "name": "back", "model": "painter"},
    ]
    longer = validate_recipe(recipe | {"stages": [*through, *recipe["stages"]]})
    models = PlanModels(compile_plan(longer, plan.facts))
    assert models.denoising("video").vae is models.image("image").vae
