"""Published checkpoints fit our classes, name by name and shape by shape; see docs/checkpoints.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from latentloom.models import load
from latentloom.models.text import CLIPText
from latentloom.models.vae import KLAutoencoder
from tests.models.keymaps import build

CHECKPOINTS = build.checkpoints()
DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_class_takes_exactly_the_published_weights(name: str) -> None:
    entry, shapes = CHECKPOINTS[name], build.read_shapes(name)
    assert build.shapes_digest(shapes) == entry["sha256"]
    assert len(shapes) == entry["num_tensors"]
    module = build.build_module(entry["class"], entry["config"])
    weights = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    module.load_state_dict(weights, strict=True, assign=True)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_docs_say_what_was_verified(name: str) -> None:
    entry = CHECKPOINTS[name]
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if f"`{name}`" in row]
    assert entry["checkpoint"] in row
    assert f"`{entry['class']}`" in row
    assert ("unverified" in row) != entry["verified"]


def test_a_key_map_without_a_listing_is_unverified() -> None:
    for entry in CHECKPOINTS.values():
        assert entry["verified"] == (entry["listing"] is not None)


def test_text_encoder_loads_under_its_published_names(
    tiny_folder: Path, tmp_path: Path, image: load.ImageModel
) -> None:
    """transformers 5 has neither the outer name nor the positions that files on the hub have."""
    copy = Path(shutil.copytree(tiny_folder / "image", tmp_path / "image"))
    path = copy / "text_encoder" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in weights.items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    model = load.load_image_model(copy)
    assert isinstance(model.text, CLIPText)
    assert torch.equal(model.text.encode(["a"]), image.text.encode(["a"]))


def test_vae_loads_under_the_names_of_its_old_attention(
    tiny_folder: Path, tmp_path: Path, image: load.ImageModel
) -> None:
    """The VAE of Stable Diffusion 1.5 lies on the hub with names that diffusers gave up in 0.17."""
    copy = Path(shutil.copytree(tiny_folder / "image" / "vae", tmp_path / "vae"))
    path = copy / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for key, value in safetensors.torch.load_file(path).items():
        for new, previous in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{previous}.")
        weights[key] = value
    assert any(".query." in key for key in weights)
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    config["_diffusers_version"] = "0.6.0"
    (copy / "config.json").write_text(json.dumps(config))
    vae = load.load_vae(copy)
    assert isinstance(vae, KLAutoencoder)
    frames = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    assert torch.equal(vae.encode_latents(frames), image.vae.encode_latents(frames))
