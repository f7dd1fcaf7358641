"""What may be written under fuse and mix, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from latentloom.schemas.fusion import FuseStage, MixStage

TWO = [{"model": "image"}, {"model": "video"}]
THREE = [*TWO, {"model": "other"}]
WEIGHED = [source | {"weight": 1 / 3} for source in THREE]


def fuse(sources: list[dict[str, Any]] | None = None, **fields: Any) -> FuseStage:
    data = {"op": "fuse", "sources": sources or TWO, "num_inference_steps": 4, **fields}
    return FuseStage.model_validate(data)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"weights": [0.5]}, "weights has 1 entries for the 2 steps from tau 2 to 4"),
        ({"weights": [0.5, 1.5]}, "less than or equal to 1"),
        ({"weights": [[0.5, 0.6], 1]}, r"weights\[0\] sum to 1.1, not 1"),
        ({"weights": [[0.2, 0.3, 0.5], 1]}, r"weights\[0\] has 3 numbers for 2 sources"),
        ({"weights": [1, 1], "sources": THREE}, r"weights\[0\] is one number.* give 3"),
        ({"weights": [1, 1], "alpha": 0.5}, "weights say it all; leave out alpha"),
        ({"weights": [1, 1], "schedule": "constant", "toward": "video"}, "schedule and toward"),
        ({"weights": [1, 1], "sources": WEIGHED}, "leave out the sources' weight"),
        ({"sources": WEIGHED, "alpha": 0.5}, "alpha, or every source a weight, not both"),
        ({"sources": THREE}, "more than two sources need a weight each"),
        ({"sources": WEIGHED, "interpolation": "slerp"}, "slerp mixes 2 sources, not 3"),
        ({"interpolation": "slerp", "variance_preserving": True}, "leave out variance_preserving"),
        ({"space": "eps", "variance_preserving": True}, "is for space x, not eps"),
        ({"tau": 3.7}, "3.7 is no step: give a whole number, such as 3, or a fraction"),
        ({"checkpoint_every": -1}, "greater than or equal to 0"),
    ],
)
def test_fusions_that_contradict_themselves_are_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        fuse(**fields)


def test_written_out_fusion_is_read_back() -> None:
    for stage in (fuse(), fuse(weights=[0.5, 1]), fuse(WEIGHED), fuse(alpha=0.2, tau=0.25)):
        assert FuseStage.model_validate(stage.model_dump(mode="json")) == stage


@pytest.mark.parametrize(("tau", "step"), [(0.5, 2), (0.25, 1), (3, 3), (3.0, 3), (1, 1)])
def test_tau_is_a_step_or_a_fraction_of_them(tau: float, step: int) -> None:
    assert fuse(tau=tau).first_mixed_step(4) == step


def test_alpha_of_the_paper_holds_where_nothing_else_is_said() -> None:
    assert fuse().first_alpha == 0.7
    assert fuse(alpha=0).first_alpha == 0
    assert fuse(WEIGHED).first_alpha is None
    assert fuse(weights=[1, 1]).first_alpha is None


@given(
    num_steps=st.integers(1, 200),
    every=st.integers(0, 60),
    strength=st.floats(0.05, 1),
)
def test_checkpoints_lie_between_the_first_step_and_the_last(
    num_steps: int, every: int, strength: float
) -> None:
    stage = fuse(tau=0, num_inference_steps=num_steps, checkpoint_every=every, strength=strength)
    steps = stage.checkpoint_steps()
    start = num_steps - int(num_steps * strength)
    assert all(start < step < num_steps and step % every == 0 for step in steps)
    gaps = [b - a for a, b in zip((start, *steps), (*steps, num_steps), strict=True)]
    assert every == 0 or max(gaps) <= every


def test_ratio_is_a_number_or_rises_and_falls_in_time() -> None:
    assert MixStage.model_validate({"op": "mix", "ratio": 0.25}).ratio[0].ratio == 0.25
    keys = [{"time": "1s", "ratio": 0}, {"time": "00:02", "ratio": 1}]
    assert [key.time for key in MixStage.model_validate({"op": "mix", "ratio": keys}).ratio] == [
        1,
        2,
    ]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"ratio": 1.5}, "less than or equal to 1"),
        ({"ratio": []}, "at least 1 item"),
        ({"ratio": [{"time": 2, "ratio": 0}, {"time": 2, "ratio": 1}]}, "2 s must lie after 2 s"),
        ({"interpolation": "slerp", "variance_preserving": True}, "leave out variance_preserving"),
    ],
)
def test_mixes_that_contradict_themselves_are_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        MixStage.model_validate({"op": "mix", **fields})
