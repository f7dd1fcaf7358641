"""What may be written under edit, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from latentloom.models.schedulers import Sampler
from latentloom.schemas.stages import STAGES, Stage

WITH_STRENGTH: dict[str, dict[str, Any]] = {
    "img2img": {},
    "controlnet": {"controlnet": {"model": "control"}},
    "t2i_adapter": {"t2i_adapter": {"model": "adapter"}},
    "inpaint": {"mask": "mask"},
}


def edit(kind: str, **fields: Any) -> Any:
    data = {"op": "edit", "kind": kind, **WITH_STRENGTH[kind], **fields}
    return TypeAdapter[Any](Stage).validate_python(data)


def test_editors_with_a_strength_are_known() -> None:
    assert {f"edit:{kind}" for kind in WITH_STRENGTH} == {
        tag
        for tag, stage in STAGES.items()
        if tag.startswith("edit") and "strength" in stage.model_fields
    }


@pytest.mark.parametrize("kind", WITH_STRENGTH)
def test_strength_that_takes_no_step_is_refused(kind: str) -> None:
    fault = "strength 0.01 is less than one of the 40 num_inference_steps, .* raise either"
    with pytest.raises(ValidationError, match=fault):
        edit(kind, strength=0.01)
    assert edit(kind, strength=0.025).strength == 0.025
    assert edit(kind, strength=0.01, num_inference_steps=100).num_inference_steps == 100


@given(num_steps=st.integers(1, 1000), strength=st.floats(0, 1, exclude_min=True))
def test_what_is_refused_is_what_samplers_begin_at_the_end(num_steps: int, strength: float) -> None:
    sampler = Sampler(forward=None, inverse=None, timesteps=tuple(range(num_steps)))
    if sampler.start_index(strength) < num_steps:
        edit("img2img", num_inference_steps=num_steps, strength=strength)
    else:
        with pytest.raises(ValidationError):
            edit("img2img", num_inference_steps=num_steps, strength=strength)
