"""Runs on a Dask scheduler that runs already, with workers that come and are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentloom.flows.runs import read_state
from latentloom.schemas.event import Event
from latentloom.storage.store import Store
from tests.lasting import CHECKOUT, PATIENCE_SECONDS, serving, wait_for
from tests.runs import compile_small, make_clip, make_recipe_data, run_here
from tests.yaml import write_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Farm:
    """A scheduler, and workers that are processes of their own."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder, self.server = folder, server
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        self.processes: list[subprocess.Popen[bytes]] = []
        port = self.address.rpartition(":")[2]
        self.start(
            "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show"
        )

    def start_worker(self, *words: str) -> subprocess.Popen[bytes]:
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        return self.start("worker", self.address, *options, *words)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "dask.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp("farm")
    with serving(folder) as service:
        farm = Farm(folder, service.url)
        farm.start_worker("--resources", "DISK=1")
        yield farm
        farm.stop()


class Desk:
    """A folder in which runs on the farm are started."""

    def __init__(self, folder: Path, farm: Farm, **settings: Any) -> None:
        self.folder, self.farm = folder, farm
        self.clip = make_clip(folder / "clip.mp4", 96)
        data = make_recipe_data(Path("clip.mp4"), Path("out.mp4"))
        write_yaml(folder / "recipe.yaml", data)
        write_yaml(folder / "config.yaml", {"scheduler": farm.address, **settings})

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        words = words or ("-m", "latentloom", "run", "recipe.yaml", "--json")
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(CHECKOUT),
                "LATENTLOOM_CONFIG": str(self.folder / "config.yaml"),
                "PREFECT_API_URL": self.farm.server,
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def store(self) -> Store:
        return Store.open(str(self.folder / ".latentloom"), create=False)

    def events(self) -> list[Event]:
        if not (self.folder / ".latentloom" / "store.json").exists():
            return []
        store = self.store
        return [
            event
            for run in store.runs()
            for name in store.event_files(run)
            for event in store.read_event_file(run, name)
        ]

    def records(self) -> dict[str, bytes]:
        found = (self.folder / ".latentloom" / "records").glob("*/*.json")
        return {path.name: path.read_bytes() for path in found}


def test_chunks_of_a_killed_worker_are_taken_over(tmp_path: Path, farm: Farm) -> None:
    desk = Desk(tmp_path, farm, routes={"encode_video": "DISK"})
    lost = farm.start_worker()
    run = desk.start()

    def works() -> bool:
        names = {event.worker for event in desk.events() if event.kind == "chunk_computed"}
        assert run.poll() is None, run.communicate()
        return any(name.endswith(f"-{lost.pid}") for name in names)

    wait_for(works, "work of the worker")
    lost.send_signal(signal.SIGKILL)
    before = desk.records()
    stdout, stderr = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, stderr
    facts = json.loads(stdout.splitlines()[-1])
    assert facts["state"] == "finished"

    after = desk.records()
    plan = compile_small(desk.store, desk.clip, tmp_path / "here.mp4")
    lasting = {f"{key}.json" for key in plan.lasting_keys()}
    assert {name: after[name] for name in before if name in lasting} == {
        name: record for name, record in before.items() if name in lasting
    }
    keeper = f"-{farm.processes[1].pid}"
    encoders = {e.worker for e in desk.events() if e.stage == "encode_video"}
    assert all(name.endswith(keeper) for name in encoders)

    run_here(Store.open(str(tmp_path / "other")), plan)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "here.mp4").read_bytes()


def test_models_are_loaded_once_per_worker_and_kept(tmp_path: Path, farm: Farm) -> None:
    from distributed import Client

    from latentloom.models.load import load_image_model

    with Client(farm.address, set_as_default=False) as client:
        run = Desk(tmp_path, farm).start()
        _, stderr = run.communicate(timeout=PATIENCE_SECONDS)
        assert run.returncode == 0, stderr
        (loads,) = client.run(lambda: load_image_model.cache_info().misses).values()
    assert loads == 1


def test_deployment_uses_the_scheduler_that_its_workers_settings_name(
    tmp_path: Path, farm: Farm
) -> None:
    desk = Desk(tmp_path, farm)
    code = "from latentloom.flows.deployed import edit_recipe; edit_recipe('recipe.yaml')"
    run = desk.start("-c", code)
    _, stderr = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 0, stderr
    workers = {event.worker for event in desk.events() if event.kind == "chunk_computed"}
    assert workers
    assert not any(worker.endswith(f"-{run.pid}") for worker in workers)
    assert (tmp_path / "out.mp4").exists()


def test_first_interrupt_reaches_workers_of_the_scheduler(tmp_path: Path, farm: Farm) -> None:
    desk = Desk(tmp_path, farm)
    run = desk.start()
    wait_for(lambda: len(desk.records()) >= 2 or run.poll() is not None, "records")
    run.send_signal(signal.SIGINT)
    _, stderr = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == 130, stderr
    (name,) = desk.store.runs()
    assert read_state(desk.store, name).state == "interrupted"
    assert not (tmp_path / "out.mp4").exists()

    again = desk.start()
    _, stderr = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, stderr
    assert desk.store.runs() == [name]


@pytest.mark.parametrize(
    ("settings", "variables", "code", "message"),
    [
        ({"routes": {"fuse": "NOWHERE"}}, {}, 2, "'fuse' is for workers with the resource NOWHERE"),
        ({"scheduler": "tcp://127.0.0.1:9"}, {}, 1, "the scheduler at tcp://127.0.0.1:9 cannot be"),
        ({}, {"PREFECT_API_URL": ""}, 2, "set PREFECT_API_URL"),
        ({"scheduler": "8786"}, {}, 2, "no address such as tcp://"),
    ],
)
def test_farm_that_cannot_do_the_work_is_one_clear_error(
    tmp_path: Path,
    farm: Farm,
    settings: dict[str, Any],
    variables: dict[str, str],
    code: int,
    message: str,
) -> None:
    run = Desk(tmp_path, farm, **settings).start(**variables)
    _, stderr = run.communicate(timeout=PATIENCE_SECONDS)
    assert run.returncode == code, stderr
    assert message in stderr
    assert "Traceback" not in stderr
