"""A process killed after any store operation: the same run again gives the same bytes, and redoes nothing."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from latentloom.flows.execute import execute
from latentloom.flows.runs import register
from latentloom.media import process
from latentloom.schemas.plan import Plan
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import verify
from latentloom.storage.store import Store
from tests.runs import compile_small, make_clip
from tests.storage.faults import KillAfter

# LATENTLOOM_KILLS=200 tries every other operation; the default fits into a run of all tests.
NUM_KILLS = int(os.environ.get("LATENTLOOM_KILLS", "24"))


class Runner:
    """Runs one plan in processes of their own, each on a copy of a store that knows the clip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clip = make_clip(folder / "clip.mp4", 16)
        self.output = folder / "edited.mp4"
        prepared = Store.open(str(folder / "prepared"))
        self.plan: Plan = compile_small(prepared, clip, self.output)
        # A forked process must not share the decoder of this one.
        process.stop()
        self.counts = folder / "operations"
        self.fresh("undisturbed")
        assert self.run("undisturbed", None) == 0
        self.expected = self.output.read_bytes()
        self.num_operations = int(self.counts.read_text())

    def fresh(self, name: str) -> None:
        """Begin with an empty store and no output."""
        for path in (self.output, Path(f"{self.output}.json")):
            path.unlink(missing_ok=True)
        shutil.copytree(self.folder / "prepared", self.folder / name)

    def run(self, name: str, k: int | None, prepare: Callable[[], None] | None = None) -> int:
        """Run in a forked process that dies after k store operation; return its wait status."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                if prepare is not None:
                    prepare()
                backend = KillAfter(LocalBackend(self.folder / name), k, kill=_die)
                store = Store(backend)
                execute(store, self.plan, register(store, self.plan))
                self.counts.write_text(str(backend.count))
                process.stop()
                code = 0
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1]

    def records(self, name: str) -> dict[str, bytes]:
        """Return all records with their bytes, which name the object that they prove."""
        folder = self.folder / name / "records"
        return {path.name: path.read_bytes() for path in folder.glob("*/*.json")}

    def check(self, name: str, before: dict[str, bytes]) -> None:
        """Run again, undisturbed: same bytes, and no committed chunk computed anew."""
        assert self.run(name, None) == 0
        assert self.output.read_bytes() == self.expected
        after = self.records(name)
        lasting = {f"{key}.json" for key in self.plan.lasting_keys()}
        assert {key: after[key] for key in before if key in lasting} == {
            key: value for key, value in before.items() if key in lasting
        }
        assert verify(Store.open(str(self.folder / name))).damages == []
        shutil.rmtree(self.folder / name)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("kills"))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_and_resume(runner: Runner, k: int) -> None:
    name = f"killed-{k}"
    runner.fresh(name)
    assert runner.run(name, k) == signal.SIGKILL
    runner.check(name, runner.records(name))


@pytest.mark.parametrize("part", range(4))
def test_killed_after_any_store_operation_resumes_to_the_same_bytes(
    runner: Runner, part: int
) -> None:
    kill_and_resume(runner, (2 * part + 1) * runner.num_operations // 8)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(NUM_KILLS))
def test_killed_at_many_points_resumes_to_the_same_bytes(runner: Runner, part: int) -> None:
    kill_and_resume(runner, part * runner.num_operations // NUM_KILLS)


@pytest.mark.parametrize("nth", [0, 1])
def test_killed_between_sidecar_and_video_the_video_is_still_ours(runner: Runner, nth: int) -> None:
    name = f"publishing-{nth}"
    runner.fresh(name)

    def die_at_the_nth_rename() -> None:
        count, rename = 0, Path.replace

        def counted(path: Path, target: Path) -> Path:
            nonlocal count
            if path.parent == runner.output.parent:
                if count == nth:
                    _die()
                count += 1
            return rename(path, target)

        # In the child process that is about to die.
        Path.replace = counted  # type: ignore[method-assign, assignment]

    assert runner.run(name, None, die_at_the_nth_rename) == signal.SIGKILL
    runner.check(name, runner.records(name))
