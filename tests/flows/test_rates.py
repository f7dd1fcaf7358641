"""What interpolation does to a plan: more frames in the same time, and no key changes before it."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import RecipeError
from latentloom.flows.compile import compile_plan
from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import Plan
from tests.facts import FUSE, make_facts, make_info, make_recipe

STAGES: list[dict[str, Any]] = [{"op": "encode"}, {"op": "interpolate"}, {"op": "decode"}]


def compiled(facts: Facts | None = None, **changes: Any) -> Plan:
    return compile_plan(make_recipe(**({"stages": STAGES} | changes)), facts or make_facts())


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 16))
def test_new_frames_divide_the_time_of_each_old_one_evenly(gaps: list[int], rate: int) -> None:
    pts = [0]
    for gap in gaps:
        pts.append(pts[-1] + gap)
    info = make_info(pts=tuple(pts[:-1]), last_duration=gaps[-1], time_base=(2, 25))
    faster = info.faster(rate)
    times = [at * faster.tick for at in faster.pts]
    assert times[::rate] == [at * info.tick for at in info.pts]
    ends = [*times[1:], faster.end_pts(faster.num_frames) * faster.tick]
    assert ends[-1] == info.end_pts(info.num_frames) * info.tick
    lengths = [b - a for a, b in zip(times, ends, strict=True)]
    assert lengths == [Fraction(gap) * info.tick / rate for gap in gaps for _ in range(rate)]


def test_chunks_are_source_frames_and_hold_four_for_each() -> None:
    plan = compiled()
    made, decoded, segments = (plan.by_name[n] for n in ("interpolate", "decode", "encode_video"))
    assert (made.rate, decoded.rate, plan.rate) == (4, 4, 4)
    assert [(c.start, c.stop) for c in made.chunks][:2] == [(0, 4), (4, 8)]
    assert made.longest == 16
    assert made.span(made.chunks[1]) == (16, 32)
    assert [(c.start, c.stop) for c in segments.chunks] == [(0, 100)]
    settings = segments.variants[0].fields["settings"]
    assert settings["time_base"] == [1, 4000]
    assert settings["frame_rate"] == [40, 1]
    assert made.chunk_bytes[0] > 16 * 4 * 6 * 8 * 4


def test_chunk_reads_the_frame_after_it_but_not_across_a_cut() -> None:
    plan = compiled(windows={"scenes": [4.0]})
    made = plan.by_name["interpolate"]
    ahead = {chunk.stop: chunk.ahead for chunk in made.chunks}
    assert [stop for stop, number in ahead.items() if number == 0] == [40, 100]
    straddling = next(chunk for chunk in made.chunks if chunk.stop == 16)
    assert straddling.reads == ((0, 1),)


def test_new_cut_changes_the_chunk_before_it_alone() -> None:
    before, after = compiled(), compiled(windows={"scenes": [4.0]})
    for name, stops in (("encode", []), ("interpolate", [40]), ("decode", [40])):
        old = {chunk.key for chunk in before.by_name[name].chunks}
        new = [chunk.stop for chunk in after.by_name[name].chunks if chunk.key not in old]
        assert new == stops


def test_twice_makes_sixteen() -> None:
    again = {"op": "interpolate", "name": "again"}
    plan = compiled(stages=[*STAGES[:2], again, STAGES[2]])
    assert plan.by_name["again"].rate == plan.rate == 16
    assert plan.by_name["again"].longest == 16


def test_windows_after_interpolation_hold_whole_source_frames() -> None:
    upsample = {"op": "upsample", "model": "upsample_video"}
    plan = compiled(stages=[*STAGES[:2], upsample, STAGES[2]])
    stage = plan.by_name["upsample"]
    assert stage.variants[0].fields["windows"]["size"] == 8
    assert stage.variants[0].fields["windows"]["overlap"] == 4
    assert {chunk.num_frames for chunk in stage.chunks} == {2}
    assert all(b.start - a.start == 1 for a, b in pairwise(stage.chunks))


def test_upsampler_with_temporal_layers_works_in_windows_of_eight() -> None:
    upsample = {"op": "upsample", "model": "upsample_video"}
    stage = compiled(stages=[STAGES[0], upsample, STAGES[2]]).by_name["upsample"]
    assert (stage.unit, stage.frame_shape) == ("windows", (4, 12, 16))
    assert [(c.start, c.stop) for c in stage.chunks][:2] == [(0, 8), (6, 14)]
    rule = {"size": 4, "overlap": 0}
    stage = compiled(stages=[STAGES[0], upsample | {"windows": rule}, STAGES[2]]).by_name[
        "upsample"
    ]
    assert [(c.start, c.stop) for c in stage.chunks][:2] == [(0, 4), (4, 8)]


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        (
            [*STAGES[:2], {"op": "invert", "num_inference_steps": 4}, FUSE, STAGES[2]],
            "'interpolate' has 4 frames for each of the source's, and only interpolate, upsample",
        ),
        (
            [
                *STAGES[:2],
                {"op": "upsample", "model": "upsample_video", "windows": {"size": 10}},
                STAGES[2],
            ],
            r"windows.size 10 and windows.overlap 4 must be multiples of 4",
        ),
        ([STAGES[0], {"op": "interpolate", "model": "video"}, STAGES[2]], "needs interpolator"),
        ([{"op": "interpolate"}], "needs latents, but 'decode_video' makes frames"),
    ],
)
def test_what_does_not_fit_interpolation_is_refused(
    stages: list[dict[str, Any]], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        compiled(stages=stages)
