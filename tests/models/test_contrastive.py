"""Cosines are those of the published model class, on its own preprocessing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentloom.errors import ModelError, PolicyError
from latentloom.models.contrastive import Contrastive, load_contrastive, middle_square
from tests.models import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_contrastive(tmp_path_factory.mktemp("contrastive"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Contrastive:
    return load_contrastive(folder)


def test_cosines_are_those_of_the_class_itself(model: Contrastive, folder: Path) -> None:
    frames = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    texts = ["a red circle", "b"]
    cosines = model.embed_frames(frames) @ model.embed_texts(texts).T
    facts = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    with torch.no_grad():
        output = model.module(
            input_ids=model.tokenizer(texts, padding=True, return_tensors="pt").input_ids,
            pixel_values=(frames / 2 + 0.5 - mean) / std,
        )
    expected = output.logits_per_image / model.module.logit_scale.exp()
    assert torch.allclose(cosines, expected, atol=1e-5)
    assert float(cosines.std()) > 1e-3


def test_many_frames_are_embedded_as_one_by_one(model: Contrastive) -> None:
    frames = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    together = model.embed_frames(frames)
    assert together.shape == (40, 8)
    assert torch.allclose(together[35:36], model.embed_frames(frames[35:36]), atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(40), atol=1e-5)


def test_a_text_longer_than_the_context_is_cut(model: Contrastive) -> None:
    assert model.embed_texts(["ab " * 40]).shape == (1, 8)


def test_the_middle_square_is_scaled_and_cut() -> None:
    wide = torch.full((1, 3, 32, 96), -1.0)
    wide[..., 32:64] = 1.0
    assert torch.equal(middle_square(wide, 32), torch.ones(1, 3, 32, 32))
    small = middle_square(wide, 16)
    assert small.shape == (1, 3, 16, 16)
    assert bool((small[..., 2:-2] > 0.99).all())
    assert middle_square(wide[..., :31], 16).shape == (1, 3, 16, 16)


def test_a_folder_without_statistics_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ModelError, match="image_mean"):
        load_contrastive(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["SiglipModel"]}')
    with pytest.raises(PolicyError, match="SiglipModel"):
        load_contrastive(tmp_path)
