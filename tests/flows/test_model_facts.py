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
from tests.facts import make_recipe


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
