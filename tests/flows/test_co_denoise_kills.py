"""A process killed while windows take a step: same bytes, and no more than the window at hand done again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from latentloom.flows.execute import execute
from latentloom.flows.runs import read_plan, register
from latentloom.media import process
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import verify
from latentloom.storage.store import Store
from latentloom.tasks import group
from latentloom.tasks.chunk import OpenChunk
from tests.runs import compile_small, make_clip, run_here
from tests.storage.faults import KillAfter
from tests.test_cli import Desk, assert_no_strays

# LATENTLOOM_KILLS=100 in the slow tier kills after each of 100 store operations.
NUM_KILLS = int(os.environ.get("LATENTLOOM_KILLS", "24"))
WINDOWS = {"size": 8, "overlap": 3, "mode": "co_denoise"}
STAGES: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "model": "image", "num_inference_steps": 4},
    {"op": "smooth", "guidance_scale": 2.0},
]


class Smoothing:
    """A stage of three windows and four steps whose inputs are done, in copies of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        prepared = Store.open(str(folder / "prepared"))
        clip = make_clip(folder / "clip.mp4", 14)
        self.plan: Plan = compile_small(prepared, clip, None, stages=STAGES, windows=WINDOWS)
        self.stage = self.plan.by_name["smooth"]
        run_here(prepared, self.plan)
        self.expected = [prepared.read(chunk.key).tobytes() for chunk in self.stage.chunks]
        for chunk in self.stage.chunks:
            prepared.delete(chunk.key)
        # A forked process must not share the decoder of this one.
        process.stop()
        self.fresh("undisturbed")
        assert self.run("undisturbed", None) == 0
        self.num_operations = int((folder / "operations").read_text())
        assert self.taken("undisturbed") == len(self.stage.steps) * len(self.stage.chunks)

    def fresh(self, name: str) -> Store:
        shutil.copytree(self.folder / "prepared", self.folder / name)
        return Store.open(str(self.folder / name))

    def run(self, name: str, operations: int | None) -> int:
        """Run in a forked process that dies after so many store operations; return its wait status."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                self._count_windows(self.folder / f"{name}.taken")
                backend = KillAfter(LocalBackend(self.folder / name), operations, kill=_die)
                store = Store(backend)
                execute(store, self.plan, register(store, self.plan))
                (self.folder / "operations").write_text(str(backend.count))
                process.stop()
                code = 0
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1]

    def taken(self, name: str) -> int:
        """Return how often a window began to take a step, over all runs on a copy."""
        path = self.folder / f"{name}.taken"
        return path.stat().st_size if path.exists() else 0

    def kill_and_resume(self, operations: int) -> None:
        name = f"killed-{operations}"
        store = self.fresh(name)
        assert self.run(name, operations) == signal.SIGKILL
        assert self.run(name, None) == 0
        assert [store.read(chunk.key).tobytes() for chunk in self.stage.chunks] == self.expected
        assert self.taken(name) <= len(self.stage.steps) * len(self.stage.chunks) + 1
        assert not any(store.present(self.stage.keys_at(step)) for step in self.stage.steps[:-1])
        assert verify(store).damages == []
        shutil.rmtree(self.folder / name)

    def _count_windows(self, path: Path) -> None:
        smooth = group.STAGES["smooth"]

        def counted(chunk: OpenChunk) -> Any:
            with path.open("ab") as file:
                file.write(b".")
            return smooth(chunk)

        group.STAGES["smooth"] = counted


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def smoothing(tmp_path_factory: pytest.TempPathFactory) -> Smoothing:
    return Smoothing(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("part", [3, 6])
def test_killed_in_a_step_resumes_to_the_same_bytes(smoothing: Smoothing, part: int) -> None:
    smoothing.kill_and_resume(part * smoothing.num_operations // 8)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(NUM_KILLS))
def test_killed_after_many_store_operations_resumes_to_the_same_bytes(
    smoothing: Smoothing, part: int
) -> None:
    smoothing.kill_and_resume(part * smoothing.num_operations // NUM_KILLS)


def make_desk(folder: Path) -> Desk:
    stages = [STAGES[0], STAGES[1] | {"num_inference_steps": 6}, STAGES[2], {"op": "decode"}]
    return Desk(folder, stages=stages, windows=WINDOWS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The video that a command makes that nobody kills."""
    desk = make_desk(tmp_path_factory.mktemp("whole"))
    desk.run("run", "recipe.yaml")
    return desk.output.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "windows", "workers"), [(1, 1, 1), (2, 4, 1), (3, 2, 2), (4, 3, 2), (6, 1, 1)]
)
def test_killed_command_redoes_no_window_that_has_a_record(
    tmp_path: Path, undisturbed: bytes, step: int, windows: int, workers: int
) -> None:
    desk = make_desk(tmp_path)
    command = ["run", "recipe.yaml", "--workers", str(workers)]
    store = Store.open(str(desk.folder / ".latentloom"))
    killed = desk.start(*command)
    try:
        smooth = wait_for_windows(store, killed, step, windows)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=60)
    places = [(s, i) for s in smooth.steps for i in range(len(smooth.chunks))]
    kept = {place for place in places if store.find(smooth.key_at(place[1], place[0]))}
    seen = {name for run in store.runs() for name in store.event_files(run)}
    desk.run(*command)
    assert desk.output.read_bytes() == undisturbed
    redone = {
        (event.detail["step"], event.index)
        for run in store.runs()
        for name in set(store.event_files(run)) - seen
        for event in store.read_event_file(run, name)
        if event.kind == "chunk_computed" and event.stage == "smooth"
    }
    assert not redone & kept
    assert {place for place in places if place[0] > step + 1} <= redone | kept
    assert_no_strays(desk.folder)


def wait_for_windows(
    store: Store, running: subprocess.Popen[str], step: int, windows: int
) -> PlannedStage:
    """Wait until a run has taken so many windows to a step."""
    deadline = time.monotonic() + 240
    while not store.runs():
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    smooth = read_plan(store, store.runs()[0]).by_name["smooth"]
    while len(store.present(smooth.keys_at(step))) < windows:
        assert running.poll() is None
        assert time.monotonic() < deadline
    return smooth
