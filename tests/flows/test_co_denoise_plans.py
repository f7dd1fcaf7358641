"""Windows that meet at every step: what a plan holds and foretells, and which recipes it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from latentloom.errors import RecipeError
from latentloom.flows.compile import compile_plan
from latentloom.flows.need import Need, find_need
from latentloom.flows.steps import plan_steps
from latentloom.schemas.plan import Plan, PlannedStage
from tests.facts import make_facts, make_recipe
from tests.runs import STAGES

SMOOTH: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "num_inference_steps": 4},
    {"op": "smooth", "guidance_scale": 2.0},
]
FUSE = STAGES[2] | {"tau": 2}


def plan_of(num_frames: int = 100, **changes: Any) -> Plan:
    windows = {"mode": "co_denoise"}
    return compile_plan(make_recipe(**({"windows": windows} | changes)), make_facts(num_frames))


def after(stage: PlannedStage, step: int, windows: range | None = None) -> set[str]:
    chosen = range(len(stage.chunks)) if windows is None else windows
    return {stage.key_at(index, step) for index in chosen}


def needed(plan: Plan, present: set[str]) -> Need:
    return find_need(plan, present, published=False, look=lambda keys: present & set(keys))


def test_fresh_store_needs_every_window_at_every_step() -> None:
    plan = plan_of()
    need = needed(plan, set())
    for name in ("invert", "fuse"):
        count = len(plan.by_name[name].chunks)
        assert [(s.step, s.windows) for s in need.steps[name]] == [
            (step, list(range(count))) for step in (1, 2, 3, 4)
        ]
    assert need.num_computed("invert") == 4 * len(need["invert"])


def test_run_goes_on_at_the_newest_complete_step_without_what_is_upstream() -> None:
    plan = plan_of()
    fuse = plan.by_name["fuse"]
    count = len(fuse.chunks)
    need = needed(plan, after(fuse, 2) | after(fuse, 3, range(3)))
    assert [(s.step, s.windows) for s in need.steps["fuse"]] == [
        (3, list(range(3, count))),
        (4, list(range(count))),
    ]
    assert need["invert"] == need["encode"] == []


def test_window_lost_between_steps_is_made_again_from_the_step_before() -> None:
    plan = plan_of()
    fuse = plan.by_name["fuse"]
    present = after(fuse, 1) | after(fuse, 2) - after(fuse, 2, range(4, 5))
    first, *_ = needed(plan, present).steps["fuse"]
    assert (first.step, first.windows) == (2, [4])


def test_finished_windows_need_no_step() -> None:
    plan = plan_of()
    present = {chunk.key for chunk in plan.by_name["fuse"].chunks}
    need = needed(plan, present)
    assert need.steps == {"invert": [], "fuse": []}
    assert not need["invert"]


def test_lost_window_costs_a_cone_that_widens_toward_the_first_step() -> None:
    plan = plan_of(400)
    fuse = plan.by_name["fuse"]
    present = set(plan.keys()) - {fuse.chunks[15].key} - after(fuse, 4, range(15, 16))
    present -= {
        chunk.key for name in ("decode", "encode_video") for chunk in plan.by_name[name].chunks
    }
    need = needed(plan, present)
    assert [(s.step, s.windows) for s in need.steps["fuse"]] == [
        (1, list(range(12, 19))),
        (2, list(range(13, 18))),
        (3, list(range(14, 17))),
        (4, [15]),
    ]


def test_cone_stays_within_its_shot() -> None:
    prompts = [{"target": "a", "end": 12}, {"target": "b", "start": 12}]
    plan = plan_of(400, prompts=prompts)
    fuse = plan.by_name["fuse"]
    lost = next(i for i, chunk in enumerate(fuse.chunks) if chunk.start == 120)
    present = set(plan.keys()) - after(fuse, 4, range(lost, lost + 1))
    present -= {
        chunk.key for name in ("decode", "encode_video") for chunk in plan.by_name[name].chunks
    }
    for step in needed(plan, present).steps["fuse"]:
        assert step.windows == list(range(lost, lost + 1 + 4 - step.step))


def test_each_step_is_a_barrier_with_a_group_for_every_worker() -> None:
    plan = plan_of(400)
    steps = [s for s in plan_steps(plan, needed(plan, set()), workers=2) if s.stage == "fuse"]
    assert [step.denoising_step for step in steps] == [1, 2, 3, 4]
    assert {len(step.groups) for step in steps} == {2}


def test_plan_does_not_list_steps() -> None:
    sizes = [
        len(plan_of(2000, windows={"mode": mode}).model_dump_json())
        for mode in ("independent", "co_denoise")
    ]
    assert sizes[1] < 1.5 * sizes[0]
    long = plan_of(
        2000, stages=[{"op": "encode"}, {"op": "invert", "num_inference_steps": 400}], output=None
    )
    short = plan_of(
        2000, stages=[{"op": "encode"}, {"op": "invert", "num_inference_steps": 4}], output=None
    )
    assert len(long.model_dump_json()) - len(short.model_dump_json()) < 20 * 400


def test_steps_follow_noise_start_and_strength() -> None:
    stages = [
        {"op": "encode"},
        {"op": "invert", "num_inference_steps": 10, "noise_start": 2, "strength": 0.6},
        {"op": "smooth"},
    ]
    plan = plan_of(stages=stages, output=None)
    assert plan.by_name["invert"].steps == (3, 4, 5, 6)
    assert plan.by_name["smooth"].steps == (5, 6, 7, 8, 9, 10)


def test_inversion_of_no_step_is_left_to_an_image_model() -> None:
    noised = {"op": "invert", "num_inference_steps": 4, "noise_start": 4}
    with pytest.raises(RecipeError, match=r"noise_start 4 inverts nothing, .* name an image model"):
        plan_of(stages=[{"op": "encode"}, noised, {"op": "smooth"}], output=None)
    by_image = noised | {"model": "image"}
    plan = plan_of(stages=[{"op": "encode"}, by_image, {"op": "smooth"}], output=None)
    assert plan.by_name["smooth"].steps == (1, 2, 3, 4)


def test_image_inversion_and_mix_take_no_steps_together() -> None:
    stages = [
        {"op": "encode"},
        {"op": "invert", "name": "by_image", "model": "image", "num_inference_steps": 4},
        {"op": "invert", "name": "by_video", "inputs": ["encode"], "num_inference_steps": 4},
        {"op": "mix", "inputs": ["by_image", "by_video"]},
        {"op": "smooth"},
    ]
    plan = plan_of(stages=stages, output=None)
    with_steps = [stage.name for stage in plan.stages if stage.steps]
    assert with_steps == ["by_video", "smooth"]
    mix = plan.by_name["mix"]
    assert mix.chunks[2].reads[1] == tuple(plan.by_name["by_video"].neighbours(2))


@pytest.mark.parametrize(
    ("windows", "stages", "says"),
    [
        (
            {"mode": "handoff"},
            SMOOTH,
            "stage 'invert': windows.mode handoff is for smooth, upsample",
        ),
        ({"mode": "co_denoise", "overlap": 0}, SMOOTH, "needs windows that overlap"),
        (
            {},
            [*SMOOTH[:2], SMOOTH[2] | {"windows": {"mode": "co_denoise"}}],
            "'invert' inverts every window alone",
        ),
        (
            {},
            [*SMOOTH[:2], SMOOTH[2] | {"windows": {"mode": "handoff"}}],
            "'invert' inverts every window alone",
        ),
        (
            {"mode": "co_denoise"},
            [*SMOOTH[:2], FUSE | {"windows": {"mode": "handoff"}}],
            "stage 'fuse': windows.mode handoff is for smooth, upsample",
        ),
    ],
)
def test_mode_that_does_not_fit_is_one_clear_error(
    windows: dict[str, Any], stages: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        plan_of(windows=windows, stages=stages, output=None)


def test_redo_range_cannot_change_the_steps_that_windows_take_together() -> None:
    redo = [{"frames": [10, 20], "overrides": ["stages.invert.noise_start=1"]}]
    with pytest.raises(RecipeError, match="noise_start cannot differ within a video"):
        plan_of(redo=redo)
