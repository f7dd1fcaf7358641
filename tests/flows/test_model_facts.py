"""Models are judged by their files' headers; a damaged file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from latentloom.errors import ModelError
from latentloom.flows.model_facts import model_facts
from latentloom.models.folders import resolve_folder
from latentloom.schemas.recipe import ModelSpec
from latentloom.storage.store import Store
from tests.facts import make_model, make_recipe


def headed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def entry(*, end: object) -> bytes:
    value = {"dtype": "F32", "shape": [2], "data_offsets": [0, end]}
    return headed(json.dumps({"__metadata__": {"a": "b"}, "weight": value}).encode())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(resolve_folder("embedded:standin/image"), tmp_path / "model"))


def look_up(model: Path) -> int:
    store = Store.open(str(model.parent / "store"))
    spec = ModelSpec(path=str(model))
    return model_facts("image", spec, make_recipe(), {}, store).parameter_bytes


def test_parameters_are_counted_from_headers(model: Path) -> None:
    before = look_up(model)
    (model / "unet" / "more.safetensors").write_bytes(entry(end=8) + bytes(8))
    assert look_up(model) == before + 2 * 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10",
        bytes(8),
        b"version https://git-lfs.github.com/spec/v1",
        headed(b"not JSON"),
        headed(b"\xff"),
        headed(b"[]"),
        headed(b'{"weight": 3}'),
        headed(b"{}" + b" " * 90)[:-10],
        entry(end=8) + bytes(7),
        entry(end="many"),
    ],
)
def test_damaged_weights_are_named(model: Path, content: bytes) -> None:
    (model / "unet" / "damaged.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"unet/damaged\.safetensors .*fetch"):
        look_up(model)


def change_unet(model: Path, **changes: object) -> None:
    config = {"_class_name": "UNet2DConditionModel", "in_channels": 8, "out_channels": 4}
    (model / "unet" / "config.json").write_text(json.dumps(config | changes))
    (model / "unet" / "model.safetensors").write_bytes(entry(end=8) + bytes(8))


def kind_and_base(model: Path, *, base: str | None = None) -> tuple[str, str | None]:
    store = Store.open(str(model.parent / "store"))
    image = make_model("image", "image")
    spec = ModelSpec(path=str(model), base=base)
    facts = model_facts("other", spec, make_recipe(), {"image": image}, store)
    return facts.kind, facts.base


def test_unet_of_twice_the_channels_follows_instructions_unless_it_is_told_of_noise(
    model: Path,
) -> None:
    change_unet(model)
    assert kind_and_base(model) == ("instruct", None)
    change_unet(model, class_embed_type="timestep")
    assert kind_and_base(model) == ("upsampler", "image")
    change_unet(model, num_class_embeds=1000)
    assert kind_and_base(model) == ("upsampler", "image")


def test_instruction_model_without_a_vae_is_built_on_a_base(model: Path) -> None:
    change_unet(model)
    shutil.rmtree(model / "vae")
    assert kind_and_base(model) == ("instruct", "image")
    with pytest.raises(ModelError, match="is built on 'nothing'"):
        kind_and_base(model, base="nothing")


def test_texts_are_measured_by_the_models_own_tokenizer_or_its_bases() -> None:
    store = Store.open("memory://texts")
    long = "word " * 40
    recipe = make_recipe(prompts={"source": "a", "target": long})
    spec = ModelSpec(path="embedded:sprites/image")
    image = model_facts("image", spec, recipe, {}, store)
    assert list(image.dropped) == [long]
    video = ModelSpec(path="embedded:sprites/video")
    assert model_facts("video", video, recipe, {"image": image}, store).dropped == image.dropped
