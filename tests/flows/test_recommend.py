"""What a plan recommends for the memory that was found: the largest sizes that fit, and none is applied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import ResourceError
from latentloom.flows.calibration import read_seconds, remember_seconds
from latentloom.flows.compile import compile_plan
from latentloom.flows.estimate import BASELINE_BYTES, calibration_key, speed_key
from latentloom.flows.memory import memory_bytes
from latentloom.flows.recommend import Recommendation, recommend
from latentloom.schemas.facts import MachineFacts
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.facts import FUSE, make_facts, make_recipe

GIB = 1 << 30
INVERT = {"op": "invert", "num_inference_steps": 4}
LARGE = {"source": {"uri": "/clips/clip.mp4", "size": {"width": 512, "height": 384}}}


def machine(free: int | None, **changes: Any) -> MachineFacts:
    fields: dict[str, Any] = {"device": "cpu", "torch": "2.13.0", "av": "18.1.0"}
    return MachineFacts(memory_bytes=1 << 40, free_memory_bytes=free, **(fields | changes))


def planned(free: int | None, *, gpu: int | None = None, **changes: Any) -> Plan:
    facts = make_facts(machine=machine(free, gpu_bytes=gpu), **changes.pop("facts", {}))
    return compile_plan(make_recipe(**(LARGE | changes)), facts)


def recommended(free: int | None, **changes: Any) -> Recommendation:
    found = recommend(planned(free, **changes))
    assert found is not None
    return found


def applied(found: Recommendation, **changes: Any) -> Plan:
    """Compile the recipe with what was recommended."""
    sizes: dict[str, Any] = {
        "windows": {"size": found.sizes.window},
        "numerics": {"micro_batch": found.sizes.micro_batch},
        "chunks": {"frames": found.sizes.chunk},
    }
    return planned(None, **sizes, **changes)


@settings(deadline=None, max_examples=15)
@given(st.integers(min_value=4 * GIB, max_value=60 * GIB))
def test_sizes_after_interpolation_fit_and_hold_whole_source_frames(free: int) -> None:
    stages = [
        {"op": "encode"},
        {"op": "interpolate"},
        {"op": "upsample", "model": "upsample_video"},
        {"op": "decode"},
    ]
    found = recommend(planned(free, stages=stages))
    if found is None:
        return
    plan = applied(found, stages=stages)
    assert plan.peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
    assert found.sizes.window is not None
    assert plan.by_name["upsample"].longest == found.sizes.window
    assert found.sizes.window % 4 == 0


@settings(deadline=None, max_examples=15)
@given(st.integers(min_value=2 * GIB, max_value=40 * GIB))
def test_recommended_sizes_fit_and_their_plan_has_the_peak_that_was_foretold(free: int) -> None:
    found = recommend(planned(free))
    if found is None:
        return
    assert found.peak_bytes <= free
    plan = applied(found)
    assert plan.peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
    assert plan.by_name["fuse"].chunks[0].num_frames == found.sizes.window


def test_more_memory_never_recommends_less() -> None:
    sizes = [recommended(gib * GIB).sizes for gib in (4, 8, 16, 64)]
    assert sorted(sizes, key=lambda one: (one.window or 0, one.micro_batch)) == sizes
    assert sizes[0] != sizes[-1]


def test_window_is_at_most_what_the_video_model_takes_and_calls_fill_chunks() -> None:
    found = recommended(1 << 39)
    assert found.sizes.window == 32  # the model's own limit, in tests/facts.py
    assert found.sizes.chunk % found.sizes.micro_batch == 0
    assert "windows.size=32" in found.overrides
    assert found.line.endswith("speed not measured here")


def test_stage_with_windows_of_its_own_leaves_nothing_to_recommend() -> None:
    own = {"windows": {"size": 8}}
    stages = [{"op": "encode"}, {"op": "invert", **own}, FUSE | own, {"op": "decode"}]
    assert recommended(1 << 39, stages=stages).sizes.window is None


def test_chunks_shorter_than_the_recipe_s_are_recommended_where_no_others_fit() -> None:
    """Frames of 1920 x 1088, upsampled to twice that, tile by tile and one in a model call."""
    tiling = {"size": 256, "overlap": 32}
    changes: dict[str, Any] = {
        "source": {"uri": "/clips/clip.mp4", "size": {"width": 1920, "height": 1088}},
        "stages": [{"op": op, "tiling": tiling} for op in ("encode", "upsample", "decode")],
        "numerics": {"micro_batch": 1},
    }
    whole, room = planned(None, **changes), 3 * GIB
    assert whole.peak_bytes > room
    found = recommended(room, **changes)
    assert found.overrides == [f"chunks.frames={found.sizes.chunk}"]
    assert 1 <= found.sizes.chunk < whole.recipe.chunks.frames
    shorter = changes | {"chunks": {"frames": found.sizes.chunk}}
    assert planned(None, **shorter).peak_bytes == pytest.approx(found.peak_bytes, rel=0.01)
    assert found.peak_bytes <= room
    with pytest.raises(ResourceError, match=f"these fit: chunks.frames={found.sizes.chunk};"):
        planned(None, **changes, limits={"memory": "3GiB"})


def test_limit_of_the_recipe_and_gpu_both_bind() -> None:
    loose = recommended(1 << 39).sizes
    limited = recommended(1 << 39, limits={"memory": "12GiB"})
    assert limited.memory_bytes == 12 * GIB
    small = recommended(1 << 39, gpu=limited.peak_bytes - BASELINE_BYTES)
    assert small.sizes == limited.sizes != loose
    assert "on the GPU" in small.line


def test_speed_is_told_only_where_both_sizes_were_measured() -> None:
    found = recommended(1 << 39)
    plans = planned(None), applied(found)
    keys = [
        {speed_key(stage, plan.recipe) for stage in plan.stages if stage.models} for plan in plans
    ]
    now, then = (
        dict.fromkeys(names, seconds) for names, seconds in zip(keys, (0.5, 0.25), strict=True)
    )
    assert recommended(1 << 39, facts={"measured_seconds": now}).seconds_per_frame is None
    told = recommended(1 << 39, facts={"measured_seconds": now | then})
    assert told.seconds_per_frame == (0.5 * len(now), 0.25 * len(then))
    assert "measured here" in told.line


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": [{"op": "encode"}, {"op": "invert", "num_inference_steps": 8}, FUSE]},
        {"stages": [{"op": "encode"}, INVERT, FUSE | {"guidance_scale": 1.0}]},
        {"windows": {"overlap": 0}},
        {"windows": {"mode": "co_denoise"}},
    ],
)
def test_a_speed_holds_for_the_same_work_alone(changes: dict[str, Any]) -> None:
    def key(**changes: Any) -> str:
        stages = {"stages": [{"op": "encode"}, INVERT, FUSE], "output": None}
        plan = planned(None, **(stages | changes))
        return speed_key(plan.by_name["fuse"], plan.recipe)

    assert key(**changes) != key()
    assert key(prompts={"source": "a cat", "target": "a dog"}, seed=5) == key()


def test_seconds_are_those_of_the_video_s_frames(tmp_path: Path) -> None:
    store, seconds = Store.open(str(tmp_path / "store")), {}
    for overlap in (0, 8):
        plan = planned(None, windows={"size": 16, "overlap": overlap})
        fuse = plan.by_name["fuse"]
        remember_seconds(store, plan, {"fuse": 50.0}, {"fuse": len(fuse.chunks)})
        seconds[overlap] = read_seconds(store)[speed_key(fuse, plan.recipe)]
    assert seconds == {0: 0.5, 8: 0.5}


def test_measured_peak_replaces_the_formula() -> None:
    plan = planned(None)
    worst = max(plan.stages, key=lambda stage: stage.peak_bytes)
    measured = {calibration_key(worst, plan.recipe): 30 * GIB}
    assert recommended(20 * GIB).sizes.micro_batch >= 8
    again = recommend(planned(20 * GIB, facts={"measured_bytes": measured}))
    assert again is None or again.sizes != again.now


def test_plan_that_is_refused_says_which_sizes_fit() -> None:
    with pytest.raises(ResourceError, match=r"these fit: .*numerics.micro_batch=\d;"):
        planned(None, limits={"memory": "4GiB"})


def test_nothing_is_recommended_where_nothing_fits() -> None:
    assert recommend(planned(BASELINE_BYTES)) is None


@pytest.mark.parametrize(
    ("name", "text", "limited"),
    [
        ("memory.max", "1048576\n", True),
        ("memory.max", "max\n", False),
        ("memory/memory.limit_in_bytes", "1048576\n", True),
        ("elsewhere", "1048576\n", False),
    ],
)
def test_limit_of_a_control_group_is_found(
    tmp_path: Path, name: str, text: str, limited: bool
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert (memory_bytes(tmp_path) == 1 << 20) is limited
