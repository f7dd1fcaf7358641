"""Planning counts tokens as the model does, without loading it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from latentloom.errors import ModelError
from latentloom.models.folders import resolve_folder
from latentloom.models.pretrained import load_tokenizer
from latentloom.models.tokens import dropped_ends

EMBEDDED = resolve_folder("embedded:sprites/image")
LONG = "a red filled star  circles over\ta gradient background, " * 4
TEXTS = ["", "a b", LONG, "Don't   stop! " + 40 * "x ", 31 * "1", 30 * "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("tokenizer", "text_encoder/config.json"):
        source, copy = EMBEDDED / name, tmp_path / name
        copy.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
    return tmp_path


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json and merges.txt"])
def test_what_is_dropped_is_what_the_tokenizer_drops(folder: Path, files: str) -> None:
    if files != "tokenizer.json":
        (folder / "tokenizer" / "tokenizer.json").unlink()
    tokenizer, ends = load_tokenizer(folder / "tokenizer"), dropped_ends(folder, TEXTS)
    assert [text for text in TEXTS if text in ends] == [LONG, TEXTS[3], 31 * "1"]
    for text in TEXTS:
        tokens = tokenizer(text, truncation=False, verbose=False).input_ids[31:-1]
        dropped = tokenizer.decode(tokens) if tokens else ""
        assert "".join(ends.get(text, "").lower().split()) == "".join(dropped.split())


def test_shorter_of_tokenizer_and_text_encoder_counts(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text('{"max_position_embeddings": 4}')
    assert dropped_ends(folder, ["1 2 3", "1 2"]) == {"1 2 3": "3"}


@pytest.mark.parametrize("limit", [None, 1e30], ids=["no limit", "a number that stands for none"])
def test_text_encoder_counts_where_the_tokenizer_has_no_limit(
    folder: Path, limit: float | None
) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config if limit is None else config | {"model_max_length": limit}))
    assert dropped_ends(folder, TEXTS).keys() == {LONG, TEXTS[3], 31 * "1"}
    (folder / "text_encoder" / "config.json").unlink()
    assert dropped_ends(folder, TEXTS) == {}


def test_folder_without_a_tokenizer_drops_nothing(tmp_path: Path) -> None:
    assert dropped_ends(tmp_path, [LONG]) == {}


@pytest.mark.parametrize("content", ["", "{}", "[1"])
def test_damaged_tokenizer_is_named(folder: Path, content: str) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer cannot be read as a tokenizer: .*fetch"):
        dropped_ends(folder, ["a"])
