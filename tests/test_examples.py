"""What ships as an example is valid, and what is generated is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentloom.flows.example import EXAMPLE_RECIPE
from latentloom.schemas.load import load_batch, load_recipe
from latentloom.schemas.schema import recipe_schema

ROOT = Path(__file__).resolve().parents[1]
BATCHES = sorted((ROOT / "examples").rglob("*.batch.yaml"))
EXAMPLES = sorted(set((ROOT / "examples").rglob("*.yaml")) - set(BATCHES))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_validates_and_edits_the_whole_video(path: Path) -> None:
    source = load_recipe(path).source
    assert (source.start, source.end, source.duration) == (0.0, None, None)


@pytest.mark.parametrize("path", BATCHES, ids=lambda path: path.stem)
def test_example_batch_names_an_example_recipe(path: Path) -> None:
    batch, _ = load_batch(path)
    assert isinstance(batch.recipe, str)
    assert (path.parent / batch.recipe) in EXAMPLES


def test_init_writes_the_example_that_the_repository_shows() -> None:
    assert (ROOT / "examples" / "fldm.yaml").read_text() == EXAMPLE_RECIPE


def test_committed_json_schema_is_the_generated_one() -> None:
    committed = ROOT / "latentloom" / "schemas" / "recipe.schema.json"
    assert committed.read_text() == recipe_schema(), (
        "python -m latentloom.schemas.schema > latentloom/schemas/recipe.schema.json"
    )
