"""Workers without a device encode what others have decoded; here one process is both."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from latentloom.flows import handover
from latentloom.flows.execute import execute
from latentloom.flows.handover import hand_over
from latentloom.flows.need import find_need
from latentloom.flows.runs import register
from latentloom.flows.steps import Step, plan_steps
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through
from tests.runs import compile_small, make_clip, run_here


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    clip = make_clip(tmp_path / "clip.mp4", 60)
    return compile_small(Store.open(str(tmp_path / "store")), clip, tmp_path / "out.mp4")


def steps_of(plan: Plan, *, workers: int, spare: int) -> list[Step]:
    need = find_need(plan, set(), published=False)
    steps = plan_steps(plan, need, workers=workers)
    return list(hand_over(plan, steps, workers=workers, spare=spare))


def test_without_spare_workers_steps_stay_as_they_are(plan: Plan) -> None:
    need = find_need(plan, set(), published=False)
    assert steps_of(plan, workers=2, spare=0) == list(plan_steps(plan, need, workers=2))


def test_frames_of_the_next_segments_are_made_while_some_are_encoded(plan: Plan) -> None:
    steps = [step for step in steps_of(plan, workers=3, spare=1) if step.inputs_made or step.beside]
    segments = [index for step in steps for group in step.groups for index in group]
    assert segments == list(range(len(plan.by_name["encode_video"].chunks)))
    assert len(steps) > 2
    assert all(step.inputs_made and len(step.groups) == 1 for step in steps)
    assert all(step.beside and step.beside.stage == "decode" for step in steps[:-1])
    assert steps[-1].beside is None


def test_every_frame_is_made_once_and_before_its_segment(plan: Plan) -> None:
    made: set[int] = set()
    stage = plan.by_name["encode_video"]
    for step in steps_of(plan, workers=4, spare=2):
        for part in step.parts:
            indices = {index for group in part.groups for index in group}
            if part.stage == "encode_video":
                read = {chunk for i in indices for chunk in stage.chunks[i].reads[0]}
                assert read <= made
        for part in step.parts:
            if part.stage == "decode":
                indices = {index for group in part.groups for index in group}
                assert not indices & made
                made |= indices
    assert made == set(range(len(plan.by_name["decode"].chunks)))


def test_task_runs_are_few_however_many_segments_there_are(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "MAX_TASK_RUNS", 6)
    steps = [step for step in steps_of(plan, workers=2, spare=1) if step.inputs_made or step.beside]
    assert len(plan.by_name["encode_video"].chunks) > 6
    assert sum(len(part.groups) for step in steps for part in step.parts) <= 6


def test_result_is_the_same_and_the_store_holds_few_frames(plan: Plan, tmp_path: Path) -> None:
    run_here(Store.open(str(tmp_path / "usual")), plan)
    expected = (tmp_path / "out.mp4").read_bytes()
    for path in (tmp_path / "out.mp4", tmp_path / "out.mp4.json"):
        path.unlink()

    store = Store.open(str(tmp_path / "handed-over"))
    state = register(store, plan)
    frames = {chunk.key for chunk in plan.by_name["decode"].chunks}
    most = 0

    def run_groups(step: Step) -> Counter[str]:
        nonlocal most
        computed = Counter[str]()
        for part in step.parts:
            if part.inputs_made:
                most = max(most, len(store.present(frames)))
            for group in part.groups:
                done = work_through(store, plan, state.run, part.stage, group)
                assert not (part.inputs_made and done["decode"])
                computed += done
        return computed

    ended = execute(store, plan, state, workers=2, spare=1, run_groups=run_groups)
    assert ended.state == "finished"
    assert (tmp_path / "out.mp4").read_bytes() == expected
    assert not store.present(frames)
    assert most < len(frames)
