"""The command line as a person meets it: real processes, a real Prefect server, stand-in models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ruamel.yaml import YAML

from latentloom.media.probe import probe
from latentloom.storage.leases import try_lease
from latentloom.storage.store import Store
from tests.runs import make_clip, make_recipe_data
from tests.webhook import SECRET, listening

LATENTLOOM = [sys.executable, "-m", "latentloom"]
HEAVY = ("torch", "prefect", "diffusers")


class Desk:
    """A folder with a clip and a recipe, in which commands are typed."""

    def __init__(self, folder: Path, num_frames: int = 24, **changes: Any) -> None:
        self.folder = folder
        make_clip(folder / "clip.mp4", num_frames)
        data = make_recipe_data(Path("clip.mp4"), Path("out/{stem}-new.mp4"), **changes)
        with (folder / "recipe.yaml").open("w") as file:
            YAML(typ="rt", pure=True).dump(data, file)
        self.output = folder / "out" / "clip-new.mp4"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            [*LATENTLOOM, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "NO_COLOR": "1"},
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run a command to its end, and check its exit code."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=240)
        assert process.returncode == code, stderr
        assert "Traceback" not in stderr
        return stdout, stderr

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command, and read the JSON object that ends its stdout."""
        stdout, _ = self.run(*arguments, "--json", code=code)
        answer: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return answer

    def records(self) -> int:
        """Count the chunks that have a record."""
        return len(list((self.folder / ".latentloom" / "records").glob("*/*.json")))

    def wait_for_records(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait until a run has committed so many chunks."""
        deadline = time.monotonic() + 120
        while self.records() < count and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def stage(facts: dict[str, Any], op: str) -> dict[str, Any]:
    return next(found for found in facts["stages"] if found["op"] == op)


def computed(facts: dict[str, Any]) -> int:
    return sum(int(found["computed"]) for found in facts["stages"])


def strays(folder: Path) -> list[str]:
    """Find processes that still work in a folder, or serve one that does."""
    return [
        " ".join(process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(folder) and process.pid != os.getpid()
    ]


def assert_no_strays(folder: Path) -> None:
    deadline = time.monotonic() + 15
    while strays(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert strays(folder) == []


def test_validate_plan_and_help_load_no_heavy_library(desk: Desk) -> None:
    code = (
        "import sys; from latentloom.cli.main import cli\n"
        "for words in (['--help'], ['validate', 'recipe.yaml'], ['plan', 'recipe.yaml', '--json']):\n"
        "    cli.main(words, standalone_mode=False)\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=desk.folder,
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert finished.stdout.splitlines()[-1] == "[]", finished.stderr


def test_faults_of_a_recipe_are_printed_with_lines_and_exit_2(desk: Desk) -> None:
    recipe = desk.folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("op: invert", "op: invert\n  stepps: 3"))
    _, stderr = desk.run("validate", "recipe.yaml", code=2)
    assert "recipe.yaml:" in stderr
    assert "stepps: unknown field" in stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["run", "none.yaml"], 2, "No such file"),
        (["run", "recipe.yaml", "source.uri=none.mp4"], 4, "none.mp4"),
        (["run", "recipe.yaml", "output.uri=clip.mp4"], 2, "is the source"),
        (["run", "recipe.yaml", "output.uri=recipe.yaml"], 2, "not written to .yaml"),
        (["run", "recipe.yaml", "limits.memory=1MiB"], 7, "the limit is 1.0 MiB"),
        (["run", "recipe.yaml", "models.image.path=nowhere"], 2, "no model folder"),
        (["run", "recipe.yaml", "stages.fuse.tau=1.5"], 2, "1.5 is no step"),
        (["run", "recipe.yaml", "--preview"], 2, "--until-step N"),
        (["run", "recipe.yaml", "--until-step", "2", "--preview"], 2, "has 2 steps; give 1 to 1"),
        (["status", "--store", "nowhere"], 5, "nowhere"),
        (["plan", "recipe.yaml", "source.uri=file:///etc::zip://x"], 8, "::"),
        (["plan", "recipe.yaml", "output.uri=out/new.webm"], 2, ".webm"),
    ],
)
def test_bad_input_is_one_clear_error(
    desk: Desk, words: Sequence[str], code: int, message: str
) -> None:
    _, stderr = desk.run(*words, code=code)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_run_kill_resume_and_change(desk: Desk) -> None:
    """One story, since every start of a server costs seconds."""
    killed = desk.start("run", "recipe.yaml")
    desk.wait_for_records(killed, 5)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert_no_strays(desk.folder)
    assert desk.json("status")["runs"][0]["state"] == "interrupted"
    kept = desk.records()

    resumed = desk.json("run", "recipe.yaml")
    assert resumed["state"] == "finished"
    assert resumed["run"] == desk.json("status")["runs"][0]["run"]
    assert sum(found["reused"] for found in resumed["stages"]) >= min(kept, 5)
    assert all(
        found["computed"] + found["reused"] == found["chunks"] for found in resumed["stages"]
    )
    assert probe(desk.output).num_frames == 24
    assert_no_strays(desk.folder)

    again = desk.json("run", "recipe.yaml", "--workers", "2")
    assert computed(again) == 0

    plan = desk.json("plan", "recipe.yaml", "stages.fuse.alpha=0.3")
    assert stage(plan, "invert")["hits"] == stage(plan, "invert")["chunks"]
    assert stage(plan, "fuse")["hits"] == 0
    changed = desk.json("run", "recipe.yaml", "stages.fuse.alpha=0.3")
    assert stage(changed, "invert")["computed"] == 0
    assert stage(changed, "fuse")["computed"] == 4
    why, _ = desk.run("why", changed["run"], "fuse")
    assert "params.alpha: 0.7 -> 0.3" in why
    assert "fuse: cosine of image and video" in desk.run("status", changed["run"])[0]

    assert "0 damaged" in desk.run("verify")[0]
    desk.run("export", changed["run"], "fuse", "fuse.zarr")
    assert (desk.folder / "fuse.zarr" / "zarr.json").is_file()
    desk.run("report", changed["run"])
    assert (desk.folder / "out" / "clip-new.mp4.png").is_file()
    gone = desk.run("prune", "--dry-run")[0].splitlines()
    assert not [line for line in gone if line.startswith("chunk ")]
    assert desk.json("du")["data"]["files"] > 0
    desk.run("forget", changed["run"])
    assert len(desk.json("status")["runs"]) == 2


@pytest.mark.slow
def test_run_is_previewed_and_goes_on(desk: Desk) -> None:
    previewed = desk.json("run", "recipe.yaml", "--until-step", "1", "--preview")
    assert previewed["state"] == "previewed"
    assert previewed["until"] == {"stage": "fuse", "step": 1, "num_steps": 2}
    assert previewed["next"] == f"latentloom resume {previewed['run']}"
    assert Path(previewed["preview"]) == Path(f"{desk.output}.preview.png")
    assert Path(previewed["preview"]).is_file()
    assert not desk.output.exists()
    assert desk.json("status", "latest")["state"] == "previewed"
    ended = desk.json(*previewed["next"].split()[1:])
    assert (ended["run"], ended["state"]) == (previewed["run"], "finished")
    computed = {stage["name"]: stage["computed"] for stage in ended["stages"]}
    assert (computed["encode"], computed["invert"]) == (0, 0)
    assert computed["fuse"] > 0
    assert probe(desk.output).num_frames == 24


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_one(desk: Desk) -> None:
    desk.run("run", "recipe.yaml")
    expected = desk.output.read_bytes()
    other = ["--store", "other", "--workers", "2"]
    answer = desk.json("run", "recipe.yaml", "output.uri=out/other.mp4", *other)
    assert computed(answer) == sum(found["chunks"] for found in answer["stages"])
    assert (desk.folder / "out" / "other.mp4").read_bytes() == expected
    assert_no_strays(desk.folder)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_killed_command_resumes_to_the_same_bytes(tmp_path: Path, part: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    undisturbed, desk = Desk(whole), Desk(cut)
    total = sum(
        found["chunks"] + found["transient"]
        for found in undisturbed.json("run", "recipe.yaml")["stages"]
    )
    killed = desk.start("run", "recipe.yaml")
    desk.wait_for_records(killed, 1 + part * (total - 2) // 10)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    before = {p: p.read_bytes() for p in (cut / ".latentloom" / "records").glob("*/*.json")}
    desk.run("run", "recipe.yaml")
    assert desk.output.read_bytes() == undisturbed.output.read_bytes()
    after = {p: p.read_bytes() for p in before if p.exists()}
    assert all(before[path] == content for path, content in after.items())
    assert_no_strays(cut)


@pytest.mark.slow
def test_interrupt_finishes_the_chunk_and_exits_130(desk: Desk) -> None:
    process = desk.start("run", "recipe.yaml", "--json")
    desk.wait_for_records(process, 3)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert json.loads(stdout.splitlines()[-1])["state"] == "interrupted"
    assert_no_strays(desk.folder)
    assert desk.json("run", "recipe.yaml")["state"] == "finished"


@pytest.mark.slow
def test_two_processes_at_once_end_with_one_result(desk: Desk) -> None:
    first, second = (
        desk.start("run", "recipe.yaml", "--json"),
        desk.start("run", "recipe.yaml", "--json"),
    )
    answers = [json.loads(p.communicate(timeout=240)[0].splitlines()[-1]) for p in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert min(computed(answer) for answer in answers) == 0
    assert "0 damaged" in desk.run("verify")[0]


def test_no_wait_exits_6_while_another_process_runs_the_plan(desk: Desk) -> None:
    digest = desk.json("plan", "recipe.yaml")["plan"]
    taken = try_lease(Store.open(str(desk.folder / ".latentloom")), f"plan-{digest[:40]}")
    assert taken is not None
    with taken:
        _, stderr = desk.run("run", "recipe.yaml", "--no-wait", code=6)
    assert f"process {os.getpid()}" in stderr


@pytest.mark.slow
def test_redo_of_a_range_changes_it_alone(desk: Desk) -> None:
    run = desk.json("run", "recipe.yaml")["run"]
    _, stderr = desk.run("redo", run, "--frames", "8:16", code=2)
    assert "draws noise" in stderr
    redone = desk.json("redo", run, "--frames", "8:16", "stages.fuse.alpha=0.1")
    assert stage(redone, "encode")["computed"] == 0
    assert stage(redone, "fuse")["computed"] > 0
    back = desk.json("run", "recipe.yaml")
    assert stage(back, "fuse")["computed"] == 0


@pytest.mark.slow
def test_python_interface_gives_a_flow_and_lazy_latents(desk: Desk) -> None:
    code = (
        "from latentloom import load_recipe, compile_recipe, open_latents\n"
        "from latentloom.flows import engine\n"
        "engine.quiet_environment()\n"
        "with engine.session():\n"
        "    state = compile_recipe(load_recipe('recipe.yaml')).flow()()\n"
        "array = open_latents(state['run'], 'fuse')\n"
        "print(state['state'], array.shape, float(array.astype('float32').mean().compute()) != 0)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=desk.folder,
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert finished.stdout.splitlines()[-1] == "finished (24, 4, 4, 4) True", finished.stderr


@pytest.mark.slow
def test_run_on_a_given_server_shows_up_there(desk: Desk) -> None:
    from latentloom.flows import engine
    from latentloom.flows.server import EMBEDDED

    engine.quiet_environment()
    with engine.api_server() as url, pytest.MonkeyPatch.context() as patch:
        patch.delenv(EMBEDDED)  # as if it were a server that lasts
        assert desk.json("run", "recipe.yaml")["state"] == "finished"
        query = {"sort": "START_TIME_DESC", "limit": 5}
        runs = httpx.post(f"{url}/flow_runs/filter", json=query, timeout=30).json()
    assert [(run["name"], run["state_type"]) for run in runs] == [("clip.mp4 / small", "COMPLETED")]


@pytest.mark.slow
def test_run_notifies_and_keeps_the_address_to_itself(desk: Desk) -> None:
    with listening() as webhook:
        _, stderr = desk.run("run", "recipe.yaml", "--notify", f"http://{webhook.place}")
    (told,) = webhook.messages
    assert (told["kind"], told["state"], told["subject"]) == ("run", "finished", "clip.mp4 / small")
    assert str(desk.output) in told["summary"]
    assert SECRET not in stderr
    assert_nowhere_below(desk.folder, SECRET)


def test_address_to_notify_is_checked_before_anything_runs(desk: Desk) -> None:
    _, stderr = desk.run("run", "recipe.yaml", "--notify", f"slak://{SECRET}", code=2)
    assert "address 1 to notify (slak://)" in stderr
    assert SECRET not in stderr
    assert desk.records() == 0


def assert_nowhere_below(folder: Path, secret: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_flag_beats_environment_beats_config_file(tmp_path: Path) -> None:
    desk = Desk(tmp_path, num_frames=4)
    (tmp_path / "config.yaml").write_text("store: from-file\n")
    for flag, variable, used in (
        ((), {}, "from-file"),
        ((), {"LATENTLOOM_STORE": "from-environment"}, "from-environment"),
        (("--store", "from-flag"), {"LATENTLOOM_STORE": "from-environment"}, "from-flag"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LATENTLOOM_CONFIG", str(tmp_path / "config.yaml"))
            for name, value in variable.items():
                patch.setenv(name, value)
            desk.run("plan", "recipe.yaml", *flag)
        assert (tmp_path / used).is_dir()


def test_config_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTLOOM_CONFIG", str(tmp_path / "none.yaml"))
        _, stderr = Desk(tmp_path, num_frames=4).run("plan", "recipe.yaml", code=2)
    assert "none.yaml" in stderr
