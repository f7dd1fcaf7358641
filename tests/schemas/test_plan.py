"""A plan grows with the video: its chunks are small, and it comes back from JSON as it was."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import ValidationError

from latentloom.flows.compile import compile_plan
from latentloom.schemas.plan import Plan, PlannedChunk
from tests.facts import make_facts, make_recipe


def test_a_plan_comes_back_from_json() -> None:
    plan = compile_plan(make_recipe(), make_facts())
    again = Plan.model_validate_json(plan.model_dump_json())
    assert [stage.chunks for stage in again.stages] == [stage.chunks for stage in plan.stages]
    assert again.model_dump_json() == plan.model_dump_json()


def test_a_chunk_has_slots_and_no_dict_and_never_changes() -> None:
    chunk = PlannedChunk(key="k", start=0, stop=8)
    assert not hasattr(chunk, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        chunk.start = 1  # type: ignore[misc]  # what is refused


def test_an_unknown_field_of_a_chunk_is_an_error() -> None:
    plan = compile_plan(make_recipe(), make_facts()).model_dump(mode="json")
    plan["stages"][1]["chunks"][0]["extra"] = 1
    with pytest.raises(ValidationError, match="extra"):
        Plan.model_validate(plan)
