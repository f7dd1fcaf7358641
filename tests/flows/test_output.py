"""The path of the video: two fields are filled in, and nothing leads elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentloom.errors import RecipeError
from latentloom.flows.output import output_path
from tests.facts import make_facts, make_recipe


def filled_in(template: str, source: str = "/clips/clip.mp4") -> str | None:
    facts = make_facts()
    found = facts.source.model_copy(update={"uri": source})
    recipe = make_recipe(output={"uri": template}, name="night")
    return output_path(recipe, facts.model_copy(update={"source": found}))


def test_stem_and_name_are_filled_in() -> None:
    assert filled_in("/out/{name}/{stem}-{stem}.mp4") == "/out/night/clip-clip.mp4"
    assert filled_in("/out/plain.mp4") == "/out/plain.mp4"


def test_what_is_filled_in_is_not_read_again() -> None:
    assert filled_in("/out/{stem}.mp4", "/clips/{name} 2..3.mp4") == "/out/{name} 2..3.mp4"


@pytest.mark.parametrize(
    "field", ["{date}", "{stem!r}", "{name:>99}", "{stem.x}", "{}", "{{stem}}{0}"]
)
def test_every_other_field_is_a_fault_that_names_it(field: str) -> None:
    with pytest.raises(
        RecipeError, match=r"output\.uri: unknown \{.*only \{name\}, \{stem\} are known"
    ):
        filled_in(f"/out/{field}.mp4")


@pytest.mark.parametrize("source", ["/clips/..", "s3://bucket/.."])
def test_stem_that_is_no_name_is_refused(source: str) -> None:
    with pytest.raises(RecipeError, match="give the path without it"):
        filled_in("/out/{stem}/x.mp4", source)


def test_link_behind_a_field_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clip").symlink_to(tmp_path)
    with pytest.raises(RecipeError, match="leads out of"):
        filled_in(f"{tmp_path}/out/{{stem}}/x.mp4")


def test_source_is_never_the_output() -> None:
    with pytest.raises(RecipeError, match="is the source"):
        filled_in("/clips/{stem}.mp4")
