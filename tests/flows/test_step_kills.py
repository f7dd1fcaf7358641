"""A process killed inside a window goes on from its newest checkpoint: same bytes, few steps done again."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from latentloom.flows.execute import execute
from latentloom.flows.inspect import kept_keys
from latentloom.flows.runs import register
from latentloom.flows.similarity import similarity_by_stage
from latentloom.media import process
from latentloom.models.schedulers import Sampler
from latentloom.schemas.plan import Plan
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import prune, verify
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through
from tests.runs import STAGES, compile_small, make_clip, run_here
from tests.storage.faults import KillAfter

NUM_STEPS, EVERY, NUM_SOURCES = 7, 3, 2
NUM_KILLS = int(os.environ.get("LATENTLOOM_KILLS", "24"))


class Window:
    """The second window of a fuse stage, whose first one and inputs are done, in copies of a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        prepared = Store.open(str(folder / "prepared"))
        fuse = STAGES[2] | {"tau": 4, "checkpoint_every": EVERY}
        self.plan: Plan = compile_small(
            prepared,
            make_clip(folder / "clip.mp4", 14),
            None,
            stages=[STAGES[0], STAGES[1] | {"num_inference_steps": NUM_STEPS}, fuse],
        )
        assert self.plan.by_name["fuse"].checkpoints == (3, 6)
        self.chunk = self.plan.by_name["fuse"].chunks[1]
        run_here(prepared, self.plan)
        self.expected = prepared.read(self.chunk.key).tobytes()
        prepared.delete(self.chunk.key)
        # A forked process must not share the decoder of this one.
        process.stop()
        undisturbed = self.copy("undisturbed")
        assert self.fuse("undisturbed") == 0
        self.num_operations = int((folder / "operations").read_text())
        self.alike = similarity_by_stage(undisturbed.events("01RUN"))

    def copy(self, name: str) -> Store:
        shutil.copytree(self.folder / "prepared", self.folder / name)
        return Store.open(str(self.folder / name))

    def fuse(self, name: str, *, kill_at: int | None = None, operations: int | None = None) -> int:
        """Fuse the window in a process of its own that dies before a step, or after store operations."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if kill_at is not None:
                    counting(lambda count: _die() if count == kill_at * NUM_SOURCES else None)
                backend = KillAfter(LocalBackend(self.folder / name), operations, kill=_die)
                work_through(Store(backend), self.plan, "01RUN", "fuse", [1])
                (self.folder / "operations").write_text(str(backend.count))
                code = 0
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1]

    def check_resumed(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> int:
        """Run the plan again; return how many steps that took."""
        steps: list[int] = []
        with monkeypatch.context() as patched:
            counting(steps.append, patched)
            state = execute(store, self.plan, register(store, self.plan))
        assert store.read(self.chunk.key).tobytes() == self.expected
        assert not store.present(dict(self.plan.checkpoint_keys()))
        assert similarity_by_stage(store.events(state.run)) in ({}, self.alike)
        assert verify(store).damages == []
        shutil.rmtree(store.uri)
        return len(steps) // NUM_SOURCES


def counting(seen: Callable[[int], object], patched: pytest.MonkeyPatch | None = None) -> None:
    """Have a function called before each DDIM step with the number of those before it."""
    count, step = 0, Sampler.step

    def counted(self: Sampler, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        nonlocal count
        seen(count)
        count += 1
        return step(self, eps, i, z)

    (patched or pytest.MonkeyPatch()).setattr(Sampler, "step", counted)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Window:
    return Window(tmp_path_factory.mktemp("steps"))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_killed_before_any_step_redoes_less_than_the_steps_between_checkpoints(
    window: Window, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    store = window.copy(f"step-{step}")
    assert window.fuse(f"step-{step}", kill_at=step) == signal.SIGKILL
    assert store.find(window.chunk.key) is None
    resumed = window.check_resumed(store, monkeypatch)
    redone = step + resumed - NUM_STEPS
    assert redone == step % EVERY


def test_checkpoint_of_a_killed_window_is_kept_and_within_its_budget(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stage = window.copy("pruned"), window.plan.by_name["fuse"]
    assert window.fuse("pruned", kill_at=4) == signal.SIGKILL
    (record,) = [store.find(key) for key in store.present(dict(window.plan.checkpoint_keys()))]
    assert record is not None
    assert record.attributes["step"] == 3
    files = [*Path(store.uri, record.object).iterdir()]
    files.append(Path(store.uri, "records", record.key[:2], f"{record.key}.json"))
    assert 0.9 < sum(path.stat().st_size for path in files) / stage.checkpoint_bytes <= 1
    taken = prune(store, keep=kept_keys(store), min_age_seconds=0, orphan_age_seconds=0)
    assert "chunk" not in {removed.kind for removed in taken.removed}
    assert window.check_resumed(store, monkeypatch) == NUM_STEPS - 3


def kill_and_resume(window: Window, monkeypatch: pytest.MonkeyPatch, part: int, of: int) -> None:
    name = f"operation-{part}-{of}"
    store = window.copy(name)
    assert window.fuse(name, operations=part * window.num_operations // of) == signal.SIGKILL
    assert window.check_resumed(store, monkeypatch) <= NUM_STEPS


@pytest.mark.parametrize("part", [4, 5, 7])
def test_killed_after_a_store_operation_resumes_to_the_same_bytes(
    window: Window, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    kill_and_resume(window, monkeypatch, part, 8)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(NUM_KILLS))
def test_killed_after_many_store_operations_resumes_to_the_same_bytes(
    window: Window, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    kill_and_resume(window, monkeypatch, part, NUM_KILLS)
