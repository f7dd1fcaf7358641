from __future__ import annotations

from pathlib import Path

import pytest

from latentloom.errors import UsageError
from latentloom.schemas.load import load_recipe
from latentloom.schemas.settings import environment_overrides, load_settings

RECIPE = """\
version: 1
source: {uri: clip.mp4}
stages: [{op: encode}]
"""


def settings_of(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    found = load_settings(settings_of(tmp_path, "{store: s, workers: 2, roots: [videos, /data]}"))
    assert found.option_defaults() == {"store": str(tmp_path / "s"), "workers": 2}
    assert found.roots == (str(tmp_path / "videos"), "/data")


def test_remote_store_stays_as_it_is(tmp_path: Path) -> None:
    assert load_settings(settings_of(tmp_path, "store: s3://b/k")).store == "s3://b/k"


def test_empty_file_sets_nothing(tmp_path: Path) -> None:
    found = load_settings(settings_of(tmp_path, ""))
    assert (found.option_defaults(), found.recipe_defaults()) == ({}, {})


@pytest.mark.parametrize(
    ("in_recipe", "in_environment", "memory"),
    [
        ("", {}, 2**30),
        ("limits: {memory: 2GiB}\n", {}, 2**31),
        ("limits: {memory: 2GiB}\n", {"LATENTLOOM_MEMORY": "3GiB"}, 3 * 2**30),
    ],
)
def test_environment_beats_recipe_beats_file(
    tmp_path: Path, in_recipe: str, in_environment: dict[str, str], memory: int
) -> None:
    found = load_settings(settings_of(tmp_path, "{memory: 1GiB, disk: 5GiB}"))
    (tmp_path / "recipe.yaml").write_text(RECIPE + in_recipe)
    recipe = load_recipe(
        tmp_path / "recipe.yaml",
        environment_overrides(in_environment),
        defaults=found.recipe_defaults(),
    )
    assert recipe.limits.memory == memory
    assert recipe.limits.disk == 5 * 2**30


@pytest.mark.parametrize(
    ("text", "fault"),
    [("[1]", "is a mapping"), ("{stor: x, workers: 0}", "settings are: store, workers")],
)
def test_wrong_file_is_one_error_that_names_the_fields(
    tmp_path: Path, text: str, fault: str
) -> None:
    with pytest.raises(UsageError, match=fault) as caught:
        load_settings(settings_of(tmp_path, text))
    assert str(tmp_path / "config.yaml") in str(caught.value)
