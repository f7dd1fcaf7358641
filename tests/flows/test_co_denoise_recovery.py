"""Windows that meet at every step: runs that were stopped, damaged or robbed go on to the same bytes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from latentloom.errors import ResourceError
from latentloom.flows import execute as execution
from latentloom.flows import sweep
from latentloom.flows.execute import execute
from latentloom.flows.inspect import describe_run, kept_keys
from latentloom.flows.runs import register
from latentloom.schemas.plan import PlannedStage
from latentloom.schemas.run import RunState
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import prune, verify
from latentloom.storage.store import Store
from latentloom.tasks import group
from latentloom.tasks.chunk import OpenChunk
from tests.meeting import (
    FUSE,
    SMOOTH,
    done,
    foretold,
    make_plan,
    read_all,
)
from tests.runs import make_clip, run_here
from tests.storage.faults import FailFrom


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 29)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def stop_in(
    monkeypatch: pytest.MonkeyPatch, step: int, index: int, *, name: str = "smooth"
) -> None:
    stage = group.STAGES[name]

    def die(chunk: OpenChunk) -> Any:
        if chunk.step == step and chunk.chunk == chunk.stage.chunk_at(index, step):
            raise ResourceError("as if the machine were full")
        return stage(chunk)

    monkeypatch.setitem(group.STAGES, name, die)


@pytest.mark.parametrize(
    ("name", "step"),
    [("invert", 2), pytest.param("fuse", 2, marks=pytest.mark.slow), ("fuse", 4)],
)
def test_stopped_inversion_and_fusion_go_on_and_take_no_step_twice(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: int
) -> None:
    plan, other = make_plan(store, clip, FUSE), Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    with monkeypatch.context() as patch:
        stop_in(patch, step=step, index=2, name=name)
        with pytest.raises(ResourceError):
            run_here(store, plan)
    taken = done(store, run_here(store, plan))
    for stage in ("invert", "fuse"):
        windows = range(len(plan.by_name[stage].chunks))
        assert taken[stage] == [(k, index) for k in plan.by_name[stage].steps for index in windows]
        assert read_all(store, plan, stage) == read_all(other, plan, stage)


def test_stopped_run_goes_on_within_its_step(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    count = len(plan.by_name["smooth"].chunks)
    other = Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    with monkeypatch.context() as patch:
        stop_in(patch, step=3, index=2)
        with pytest.raises(ResourceError):
            run_here(store, plan)
    kept = kept_keys(store)
    taken = prune(store, keep=kept, min_age_seconds=0, orphan_age_seconds=0)
    assert "chunk" not in {removed.kind for removed in taken.removed}
    row = describe_run(store, store.runs()[-1])["stages"][-1]
    assert row["step"] == {"step": 3, "last": 4, "windows": 2}
    before = done(store, run_state(store))["smooth"]
    state = run_here(store, plan)
    assert done(store, state)["smooth"] == sorted(
        {(s, i) for s in (1, 2, 3, 4) for i in range(count)}
    )
    assert len(before) == 2 * count + 2
    assert read_all(store, plan, "smooth") == read_all(other, plan, "smooth")
    assert store.present(list(plan.keys())) == set(plan.keys())
    assert not store.present([k for s in (1, 2, 3) for k in plan.by_name["smooth"].keys_at(s)])


def test_kills_between_a_step_and_its_sweep_leave_no_fourth_step(
    store: Store, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    smooth, stage, behind = plan.by_name["smooth"], group.STAGES["smooth"], sweep.sweep_behind
    dying, most = [3, 4], 0

    def die(store: Store, stage: PlannedStage, step: int) -> None:
        if stage.name == "smooth" and dying and step == dying[0]:
            raise ResourceError(f"as if killed behind step {dying.pop(0)}")
        behind(store, stage, step)

    def count(chunk: OpenChunk) -> Any:
        nonlocal most
        most = max(most, sum(bool(store.present(smooth.keys_at(k))) for k in smooth.steps))
        return stage(chunk)

    monkeypatch.setattr(execution, "sweep_behind", die)
    monkeypatch.setitem(group.STAGES, "smooth", count)
    for _ in range(2):
        with pytest.raises(ResourceError):
            run_here(store, plan)
    run_here(store, plan)
    assert most == 3
    assert not any(store.present(smooth.keys_at(step)) for step in smooth.steps[:-1])


def run_state(store: Store) -> RunState:
    return RunState.model_validate({"run": store.runs()[-1], "name": "", "plan": "", "source": ""})


def test_damaged_window_between_steps_is_made_again(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    smooth = plan.by_name["smooth"]
    other = Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    with monkeypatch.context() as patch:
        stop_in(patch, step=4, index=0)
        with pytest.raises(ResourceError):
            run_here(store, plan)
    record = store.find(smooth.key_at(1, 3))
    assert record is not None
    (path,) = Path(store.uri, record.object).glob("c.*")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(bytes(data))
    run_here(store, plan)
    assert read_all(store, plan, "smooth") == read_all(other, plan, "smooth")
    assert verify(store).damages == []


def test_steps_that_another_run_deletes_are_taken_again(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [SMOOTH[0], SMOOTH[1] | {"model": "image"}, SMOOTH[2]]
    plan, other = make_plan(store, clip, stages), Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    smooth, stage = plan.by_name["smooth"], group.STAGES["smooth"]
    deleted = False

    def lose(chunk: OpenChunk) -> Any:
        nonlocal deleted
        if chunk.step == 3 and chunk.chunk.start > 8 and not deleted:
            deleted = True
            for key in smooth.keys_at(1) + smooth.keys_at(2):
                store.delete(key)
        return stage(chunk)

    monkeypatch.setitem(group.STAGES, "smooth", lose)
    run_here(store, plan)
    assert deleted
    assert read_all(store, plan, "smooth") == read_all(other, plan, "smooth")


def test_store_that_fills_up_in_step_7_of_20_is_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 12)
    stages = [SMOOTH[0], SMOOTH[1] | {"model": "image", "num_inference_steps": 20}, SMOOTH[2]]
    store, other = (Store.open(str(tmp_path / name)) for name in ("store", "other"))
    plan = make_plan(store, clip, stages)
    run_here(other, plan)
    disk = FailFrom(LocalBackend(tmp_path / "store"), sys.maxsize)
    second, commit = plan.by_name["smooth"].key_at(1, 7), Store.commit

    def fill_up(self: Store, key: str, *arguments: Any, **named: Any) -> Any:
        if key == second:
            disk.fail_from(disk.writes + 1)
        return commit(self, key, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", fill_up)
        with pytest.raises(ResourceError) as caught:
            execute(Store(disk), plan, register(store, plan))
    assert caught.value.exit_code == 7
    row = describe_run(store, store.runs()[-1])["stages"][-1]
    assert row["step"] == {"step": 7, "last": 20, "windows": 1}
    assert foretold(store, plan).steps["smooth"][0].step == 7
    assert run_here(store, plan).state == "finished"
    assert read_all(store, plan, "smooth") == read_all(other, plan, "smooth")
