"""What a recipe adds to a model - LoRAs, another VAE, a schedule - is looked up, checked and keyed."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from latentloom.errors import ModelError
from latentloom.flows.compile import compile_plan
from latentloom.flows.model_facts import model_facts
from latentloom.models import folders
from latentloom.schemas.facts import ModelFacts
from latentloom.schemas.recipe import ModelSpec
from latentloom.storage.store import Store
from tests.facts import make_facts, make_model, make_recipe
from tests.models import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("facts")
    tiny.save_image_pipeline(root / "image")
    tiny.save_motion_adapter(root / "video")
    tiny.save_video_pipeline(root / "video3d")
    tiny.save_vae(root / "other_vae", seed=5, scaling_factor=0.4)
    for name, value in (("a", 1.0), ("b", 2.0)):
        matrices = {f"unet.conv_in.lora_{side}.weight": torch.full((2, 2), value) for side in "AB"}
        safetensors.torch.save_file(matrices, root / f"{name}.safetensors")
    return root


def look_up(models: Path, name: str = "image", **changes: Any) -> ModelFacts:
    """Look up a model, after the image model and the lone VAE that it may be built on."""
    store = Store.open(str(models / "store"))
    found: dict[str, ModelFacts] = {}
    for other in ("other_vae", "image"):
        spec = ModelSpec(path=str(models / other))
        found[other] = model_facts(other, spec, make_recipe(), found, store)
    spec = ModelSpec.model_validate({"path": str(models / name), **changes})
    return model_facts(name, spec, make_recipe(), found, store)


def test_loras_change_the_digest_by_content_scale_and_order(models: Path) -> None:
    a, b = ({"path": str(models / f"{name}.safetensors")} for name in "ab")
    variants: list[list[dict[str, Any]]] = [[], [a], [b], [a, b], [b, a], [a | {"scale": 0.5}]]
    digests = [look_up(models, loras=loras).digest for loras in variants]
    assert len(set(digests)) == len(variants)
    copy = shutil.copy(models / "a.safetensors", models / "copied.safetensors")
    assert look_up(models, loras=[{"path": str(copy)}]).digest == digests[1]


def test_adapter_without_loras_follows_its_bases_loras(models: Path) -> None:
    store = Store.open(str(models / "store"))
    adapter = ModelSpec(path=str(models / "video"))
    digests = {
        model_facts("video", adapter, make_recipe(), {"image": base}, store).digest
        for base in (
            look_up(models),
            look_up(models, loras=[{"path": str(models / "a.safetensors")}]),
        )
    }
    assert len(digests) == 2


def test_loras_are_found_in_a_subfolder(models: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    shutil.copy(models / "a.safetensors", tmp_path / "inner" / "x.safetensors")
    found = look_up(models, loras=[{"path": str(tmp_path), "subfolder": "inner"}]).loras
    assert [Path(lora.file).name for lora in found] == ["x.safetensors"]


def test_controlnet_takes_no_lora(models: Path, tmp_path: Path) -> None:
    tiny.save_controlnet(models / "control")
    with pytest.raises(ModelError, match="kind controlnet takes none"):
        look_up(models, "control", loras=[{"path": str(models / "a.safetensors")}])


def test_damaged_lora_is_found_while_planning(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes((models / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"broken\.safetensors is damaged"):
        look_up(models, loras=[{"path": str(path)}])


def test_named_vae_replaces_the_models_own(models: Path) -> None:
    own, other = look_up(models), look_up(models, vae="other_vae")
    assert (own.scaling_factor, other.scaling_factor) == (0.5, 0.4)
    assert own.digest != other.digest
    with pytest.raises(ModelError, match="'nothing' is neither an image model nor a VAE"):
        look_up(models, vae="nothing")


def test_lone_vae_is_of_its_own_kind(models: Path) -> None:
    assert look_up(models, "other_vae").kind == "vae"


def test_scheduler_fields_replace_the_files(models: Path) -> None:
    own = look_up(models, "video")
    linear = look_up(models, "video", scheduler={"beta_schedule": "linear"})
    assert (own.scheduler["beta_schedule"], linear.scheduler["beta_schedule"]) == (
        "scaled_linear",
        "linear",
    )
    assert own.scheduler | {"beta_schedule": "linear"} == linear.scheduler
    assert own.digest != linear.digest


def test_scheduler_of_a_model_that_keeps_its_own_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match=r"models\.other_vae\.scheduler: .* kind vae"):
        look_up(models, "other_vae", scheduler={"beta_schedule": "linear"})


def test_video_model_of_another_scaling_factor_is_refused_with_both(models: Path) -> None:
    facts = make_facts()
    other = {**facts.models, "video": make_model("video", "video", scaling_factor=0.13025)}
    with pytest.raises(Exception, match=r"scaling factor 0\.13025.*scaling factor 0\.18215.*vae"):
        compile_plan(make_recipe(), facts.model_copy(update={"models": other}))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_part_is_refused_while_planning(models: Path, tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(models / "image", tmp_path / "image"))
    for path in (copy / part).glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(ModelError, match=rf"{part} holds only pickled .*convert-model"):
        model_facts("image", ModelSpec(path=str(copy)), make_recipe(), {}, store)


def test_configuration_beside_the_folders_of_a_pipeline_asks_for_no_weights(
    models: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(models / "image", tmp_path / "image"))
    shutil.copy(copy / "unet" / "config.json", copy / "config.json")
    store = Store.open(str(tmp_path / "store"))
    facts = model_facts("image", ModelSpec(path=str(copy)), make_recipe(), {}, store)
    assert facts.kind == "image"


def test_hub_repository_without_safetensors_names_convert_model(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(models / "image", tmp_path / "image"))
    next((copy / "unet").glob("*.safetensors")).unlink()
    monkeypatch.setattr(
        "latentloom.flows.model_facts.fetch_snapshot", lambda *_args, **_options: copy
    )
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(ModelError, match=r"\.bin files alone, download it .*convert-model"):
        model_facts("image", ModelSpec(repo_id="a/b"), make_recipe(), {}, store)


def test_lora_of_a_repository_fetches_one_file(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        shutil.copy(models / "a.safetensors", tmp_path / "a.safetensors")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    lora = {"repo_id": "o/n", "revision": "abc", "weight_name": "a.safetensors", "scale": 0.5}
    assert look_up(models, loras=[lora]).loras[0].scale == 0.5
    assert asked == {
        "repo_id": "o/n",
        "revision": "abc",
        "allow_patterns": ["a.safetensors", "*/a.safetensors"],
    }


def test_subfolder_of_a_repository_is_fetched_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def snapshot(_: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tiny.save_ip_adapter(tmp_path / "models").parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    spec = {"repo_id": "h94/IP-Adapter", "subfolder": "models", "revision": "main"}
    found = {"image": make_model("image", "image")}
    model_facts(
        "ip_adapter",
        ModelSpec.model_validate({**spec, "weight_name": "ip-adapter.safetensors"}),
        make_recipe(),
        found,
        Store.open(str(tmp_path / "store")),
    )
    wanted = [
        "models/image_encoder/config.json",
        "models/image_encoder/model.safetensors",
        "models/ip-adapter.safetensors",
    ]
    others = [
        "models/ip-adapter-plus_sd15.safetensors",
        "models/image_encoder/pytorch_model.bin",
        "sdxl_models/image_encoder/model.safetensors",
        "README.md",
    ]
    fetched = [name for name in wanted + others if any(fnmatch(name, one) for one in asked)]
    assert fetched == wanted


def test_a_safetensors_file_without_a_variant_is_not_a_variants(models: Path) -> None:
    folders.require_safetensors(models / "image" / "unet", None)
    with pytest.raises(ModelError, match="variant 'fp16'"):
        folders.require_safetensors(models / "image" / "unet", "fp16")


def test_lora_lies_in_one_place() -> None:
    with pytest.raises(ValueError, match="exactly one of path and repo_id"):
        ModelSpec.model_validate({"path": "a", "loras": [{"scale": 1.0}]})


@pytest.fixture
def ip_adapter(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models / "image", tmp_path / "image")
    shutil.copytree(models / "other_vae", tmp_path / "other_vae")
    return tiny.save_ip_adapter(tmp_path / "ip_adapter")


@pytest.mark.parametrize("part", ["image_encoder/model", "ip-adapter"])
def test_ip_adapter_without_all_its_weights_is_refused_while_planning(
    ip_adapter: Path, part: str
) -> None:
    weights = ip_adapter / f"{part}.safetensors"
    assert look_up(ip_adapter.parent, "ip_adapter").kind == "ip_adapter"
    pickled = weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match=rf"pickled weights \({pickled.name}\).*convert-model"):
        look_up(ip_adapter.parent, "ip_adapter")
    pickled.unlink()
    with pytest.raises(ModelError, match="holds no safetensors weights"):
        look_up(ip_adapter.parent, "ip_adapter")


def test_ip_adapter_of_several_files_needs_the_name_of_one(ip_adapter: Path) -> None:
    shutil.copy(ip_adapter / "ip-adapter.safetensors", ip_adapter / "plus.safetensors")
    listed = r"holds ip-adapter\.safetensors, plus\.safetensors; name one of them with weight_name"
    for changes in ({}, {"weight_name": "other.safetensors"}):
        with pytest.raises(ModelError, match=listed):
            look_up(ip_adapter.parent, "ip_adapter", **changes)
    named = look_up(ip_adapter.parent, "ip_adapter", weight_name="plus.safetensors")
    assert named.kind == "ip_adapter"


def test_ip_adapters_own_weights_are_in_its_digest_beside_a_variants_encoder(
    ip_adapter: Path,
) -> None:
    encoder = ip_adapter / "image_encoder" / "model.safetensors"
    encoder.rename(encoder.with_suffix(".fp16.safetensors"))
    first = look_up(ip_adapter.parent, "ip_adapter", variant="fp16")
    own = ip_adapter / "ip-adapter.safetensors"
    weights = safetensors.torch.load_file(own)
    safetensors.torch.save_file({name: 2 * value for name, value in weights.items()}, own)
    assert look_up(ip_adapter.parent, "ip_adapter", variant="fp16").digest != first.digest
