"""How fuse and mix are planned: which values reach which keys, and what their checkpoints take."""

from __future__ import annotations

from typing import Any

import pytest

from latentloom.errors import RecipeError
from latentloom.flows.compile import compile_plan
from latentloom.schemas.plan import Plan
from tests.facts import FUSE, make_facts, make_recipe

ENCODE: dict[str, Any] = {"op": "encode"}
INVERT: dict[str, Any] = {"op": "invert", "num_inference_steps": 8}


def fused(invert: dict[str, Any] | None = None, **fields: Any) -> Plan:
    stages = [ENCODE, INVERT | (invert or {}), FUSE | fields]
    return compile_plan(make_recipe(stages=stages, output=None), make_facts())


def mixed(ratio: Any, **changes: Any) -> Plan:
    """A mix of two inversions of a video of 100 frames, 10 a second."""
    stages = [
        ENCODE,
        INVERT | {"name": "by_image", "model": "image"},
        INVERT | {"name": "by_video", "inputs": ["encode"]},
        {"op": "mix", "inputs": ["by_image", "by_video"], "ratio": ratio},
        {"op": "smooth"},
    ]
    return compile_plan(make_recipe(stages=stages, output=None, **changes), make_facts())


def changed(before: Plan, after: Plan, name: str) -> list[tuple[int, int]]:
    """Frames of the chunks that the first plan does not have."""
    known = {chunk.key for chunk in before.by_name[name].chunks}
    return [(c.start, c.stop) for c in after.by_name[name].chunks if c.key not in known]


@pytest.mark.parametrize(
    "fields",
    [
        {"space": "eps"},
        {"interpolation": "slerp"},
        {"variance_preserving": True},
        {"match_statistics": "per_frame"},
        {"alpha": 0.6},
        {"schedule": "constant"},
        {"weights": [0.7] * 6},
    ],
)
def test_how_sources_are_fused_is_in_the_key(fields: dict[str, Any]) -> None:
    assert len(changed(fused(), fused(**fields), "fuse")) == len(fused().by_name["fuse"].chunks)


def test_defaults_written_out_are_the_same_chunks() -> None:
    assert not changed(fused(), fused(alpha=0.7, schedule="toward_video"), "fuse")


def test_how_often_a_window_is_saved_is_in_no_key() -> None:
    often, never = fused(checkpoint_every=3), fused(checkpoint_every=0)
    assert often.by_name["fuse"].checkpoints == (3, 6)
    assert never.by_name["fuse"].checkpoints == ()
    assert not changed(often, never, "fuse")
    assert often.digest == never.digest


def test_checkpoints_are_part_of_the_budget() -> None:
    often, never = fused(checkpoint_every=3), fused(checkpoint_every=0)
    size = often.by_name["fuse"].checkpoint_bytes
    # Two states of windows of 16 frames of (4, 6, 8) in float32.
    assert 2 * 16 * 4 * 6 * 8 * 4 < size < 2 * 16 * 4 * 6 * 8 * 4 + 8000
    assert often.store_bytes == never.store_bytes + 2 * size
    assert often.by_name["fuse"].peak_bytes > never.by_name["fuse"].peak_bytes


def test_keys_of_checkpoints_belong_to_their_chunk_and_step() -> None:
    plan = fused(checkpoint_every=3)
    keys = dict(plan.checkpoint_keys())
    assert len(keys) == 2 * len(plan.by_name["fuse"].chunks)
    assert set(keys.values()) == {chunk.key for chunk in plan.by_name["fuse"].chunks}
    assert not set(keys) & set(plan.keys())


@pytest.mark.parametrize(
    ("invert", "fields", "fault"),
    [
        ({}, {"weights": [0.5, 0.5]}, "weights has 2 entries for the 6 steps from tau 2 to 8"),
        (
            {"strength": 0.5},
            {"sources": [{"model": "image", "start": "noise"}, {"model": "video"}]},
            "start: noise is for strength 1, the inversion's is 0.5",
        ),
    ],
)
def test_fusions_that_do_not_fit_their_inversion_are_refused(
    invert: dict[str, Any], fields: dict[str, Any], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        fused(invert, **fields)


def test_windows_of_8_to_64_frames_are_planned() -> None:
    facts = make_facts()
    long = facts.models["video"].model_copy(update={"max_length": 64})
    facts = facts.model_copy(update={"models": facts.models | {"video": long}})
    for size in (8, 24, 64):
        stages = [ENCODE, INVERT, FUSE]
        recipe = make_recipe(stages=stages, output=None, windows={"size": size})
        chunks = compile_plan(recipe, facts).by_name["fuse"].chunks
        assert {chunk.num_frames for chunk in chunks} == {size}


def test_ratio_of_one_moment_changes_the_windows_around_it() -> None:
    keys = [{"time": t, "ratio": r} for t, r in ((0, 0.2), (2, 0.2), (4, 0.8), (6, 0.8))]
    before = mixed(keys)
    after = mixed([*keys[:2], keys[2] | {"ratio": 0.5}, keys[3]])
    found = changed(before, after, "mix")
    assert found
    assert all(stop - 1 > 20 and start < 60 for start, stop in found)
    assert len(found) < len(after.by_name["mix"].chunks)


def test_chunks_of_one_ratio_are_the_same_however_it_is_written() -> None:
    number = mixed(0.25)
    flat = mixed([{"time": 1, "ratio": 0.25}, {"time": 5, "ratio": 0.25}])
    assert not changed(number, flat, "mix")
    late = mixed([{"time": 8, "ratio": 0.25}, {"time": 9, "ratio": 1.0}])
    assert all(stop > 80 for _, stop in changed(number, late, "mix"))


def test_redo_may_mix_its_frames_otherwise() -> None:
    redo = {"frames": [32, 64], "overrides": ["stages.mix.ratio=0.75"]}
    plain = mixed(0.25, redo=[redo | {"overrides": []}])
    found = changed(plain, mixed(0.25, redo=[redo]), "mix")
    assert found
    assert all(start >= 32 and stop <= 64 for start, stop in found)


def test_ratios_reach_the_plan_as_few_values() -> None:
    keys = [{"time": 0, "ratio": 0.0}, {"time": 10, "ratio": 1.0}]
    values = [timed["ratio"] for timed in mixed(keys).by_name["mix"].timed if timed]
    assert values == [[[0, 0.0], [100, 1.0]]]
