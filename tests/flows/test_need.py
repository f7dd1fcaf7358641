"""Plans are demand-driven, like make."""

from __future__ import annotations

from latentloom.flows.compile import compile_plan
from latentloom.flows.need import deletable, find_need
from latentloom.flows.steps import MAX_TASK_RUNS, plan_steps
from latentloom.schemas.plan import Plan
from tests.facts import make_facts, make_recipe


def make_plan(num_frames: int = 100) -> Plan:
    return compile_plan(make_recipe(), make_facts(num_frames))


def test_everything_is_needed_at_first() -> None:
    plan = make_plan()
    need = find_need(plan, set(), published=False)
    assert {name: len(indices) for name, indices in need.items()} == {
        stage.name: len(stage.chunks) for stage in plan.stages if stage.stored
    }


def test_nothing_is_needed_once_the_video_is_there_even_if_all_chunks_are_gone() -> None:
    assert not any(find_need(make_plan(), set(), published=True).values())


def test_missing_frames_are_not_made_for_segments_that_are_there() -> None:
    plan = make_plan()
    segments = {chunk.key for chunk in plan.by_name["encode_video"].chunks}
    assert not any(find_need(plan, segments, published=False).values())


def test_lost_window_demands_its_readers_only_if_they_are_missing_too() -> None:
    plan = make_plan()
    present = set(plan.keys())
    present.discard(plan.by_name["fuse"].chunks[0].key)
    assert not any(find_need(plan, present, published=False).values())
    present.discard(plan.by_name["encode_video"].chunks[0].key)
    present -= {chunk.key for chunk in plan.by_name["decode"].chunks}
    need = find_need(plan, present, published=False)
    assert need["fuse"] == [0]
    assert need["invert"] == []


def test_frames_are_deletable_once_every_reader_has_a_record() -> None:
    plan = make_plan()
    decode = plan.by_name["decode"]
    frames = {chunk.key for chunk in decode.chunks}
    assert deletable(plan, decode, frames) == []
    done = frames | {chunk.key for chunk in plan.by_name["encode_video"].chunks}
    assert deletable(plan, decode, done) == list(range(len(decode.chunks)))
    assert deletable(plan, plan.by_name["fuse"], set(plan.keys())) == []


def test_steps_bring_inputs_first_and_leave_frames_to_their_readers() -> None:
    plan = make_plan(400)
    steps = list(plan_steps(plan, find_need(plan, set(), published=False), workers=1))
    assert [step.stage for step in steps] == ["encode", "invert", "fuse", "encode_video"]
    for step in steps:
        indices = [index for group in step.groups for index in group]
        assert indices == list(range(len(plan.by_name[step.stage].chunks)))


def test_long_video_takes_at_most_two_hundred_task_runs() -> None:
    plan = make_plan(20_000)
    for workers in (1, 4):
        steps = plan_steps(plan, find_need(plan, set(), published=False), workers=workers)
        assert sum(len(step.groups) for step in steps) <= MAX_TASK_RUNS
