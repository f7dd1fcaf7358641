"""The engine as a whole: a program that uses it is watched from outside."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentloom.errors import StageError
from latentloom.flows import engine, server

TOY = Path(__file__).with_name("toy_run.py")
CHECKOUT = Path(__file__).parents[2]
MARK = "LATENTLOOM_TEST_MARK"


@dataclass
class Watched:
    """A toy program, and all processes that descend from it, known by a variable they inherit."""

    process: subprocess.Popen[str]
    mark: str
    temp: Path

    def finish(self) -> tuple[str, str]:
        return self.process.communicate(timeout=120)

    def wait_for_line(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == line

    def survivors(self) -> list[str]:
        return [str(found) for found in marked_processes(self.mark)]

    def is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.survivors() and not list(self.temp.iterdir()):
                return True
            time.sleep(0.1)
        return False


class Toys:
    """Starts toy programs, each with a folder of its own for everything temporary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Watched] = []

    def start(self, *arguments: str, **variables: str) -> Watched:
        mark = uuid.uuid4().hex
        temp = self.folder / mark
        temp.mkdir()
        work = self.folder / f"{mark}-work"
        work.mkdir()
        variables |= {MARK: mark, "TMPDIR": str(temp), "PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen(
            [sys.executable, str(TOY), *arguments],
            env={**os.environ, **variables},
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(Watched(process, mark, temp))
        return self.started[-1]

    def stop(self) -> None:
        for toy in self.started:
            for process in marked_processes(toy.mark):
                process.kill()
            toy.process.communicate()


def marked_processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def last_line(text: str) -> Any:
    return json.loads(text.splitlines()[-1])


@pytest.fixture
def toys(tmp_path: Path) -> Iterator[Toys]:
    toys = Toys(tmp_path)
    yield toys
    toys.stop()


def test_flow_names_its_failures_and_leaves_nothing_behind(toys: Toys) -> None:
    toy = toys.start("1", "run", "fail", "run")
    out, err = toy.finish()
    assert last_line(out) == {"failures": {"1": "MediaError"}, "stopped": False}
    assert err == ""
    assert toy.process.returncode == 0
    assert toy.survivors() == []
    assert list(toy.temp.iterdir()) == []


@pytest.mark.slow
def test_server_dies_with_a_killed_program(toys: Toys) -> None:
    toy = toys.start("1", "wait")
    toy.wait_for_line("waiting")
    assert len(toy.survivors()) >= 2
    toy.process.kill()
    toy.process.wait()
    assert toy.is_gone_within(5)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_lets_tasks_end_by_themselves(
    toys: Toys, workers: str, number: signal.Signals
) -> None:
    toy = toys.start(workers, "wait")
    toy.wait_for_line("waiting")
    if number == signal.SIGINT:
        os.killpg(toy.process.pid, number)  # as a terminal does
    else:
        toy.process.send_signal(number)
    out, err = toy.finish()
    assert last_line(out) == {"failures": {}, "stopped": True}
    assert err == ""
    assert toy.is_gone_within(5)


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_signal_stops_at_once(toys: Toys, tmp_path: Path, workers: str) -> None:
    toy = toys.start(workers, "wait", LATENTLOOM_TEST_DEAF="1")
    toy.wait_for_line("waiting")
    toy.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    toy.process.send_signal(signal.SIGINT)
    _, err = toy.finish()
    assert toy.process.returncode == 130
    assert err == ""
    assert toy.is_gone_within(10)


@pytest.mark.slow
def test_cluster_replaces_a_killed_worker(toys: Toys, tmp_path: Path) -> None:
    toy = toys.start("2", "run", f"die-once:{tmp_path / 'flag'}", "run", "fail")
    out, err = toy.finish()
    assert last_line(out)["failures"] == {"3": "MediaError"}
    assert err == ""
    assert toy.is_gone_within(5)


@pytest.mark.slow
def test_workers_show_our_log_lines_and_no_others(toys: Toys) -> None:
    toy = toys.start("2", "run", "run", "run", LATENTLOOM_TEST_LOG="1")
    _, err = toy.finish()
    assert len(err.splitlines()) == 3
    assert all(" run in " in line for line in err.splitlines())


@pytest.mark.slow
def test_work_that_kills_every_worker_fails_alone(toys: Toys) -> None:
    toy = toys.start("2", "run", "die", "run", "run")
    out, err = toy.finish()
    assert last_line(out)["failures"] == {"1": "StageError"}
    assert err == ""
    assert toy.is_gone_within(5)


@pytest.mark.slow
def test_cluster_dies_with_a_killed_program_and_listens_on_loopback_only(toys: Toys) -> None:
    toy = toys.start("2", "wait")
    toy.wait_for_line("waiting")
    listening = [
        connection.laddr.ip
        for process in marked_processes(toy.mark)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 4
    assert set(listening) == {"127.0.0.1"}
    toy.process.kill()
    toy.process.wait()
    assert toy.is_gone_within(10)


@pytest.mark.slow
def test_first_start_caches_a_database_and_a_damaged_one_is_replaced(
    toys: Toys, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        toy = toys.start("1", "run", XDG_CACHE_HOME=str(cache))
        out, err = toy.finish()
        assert out, err
        assert (last_line(out)["failures"], err) == ({}, "")
        (database,) = (cache / "latentloom").iterdir()
        assert database.stat().st_size > 100_000
        database.write_bytes(b"damaged" + database.read_bytes()[7:])


@pytest.mark.slow
def test_a_server_of_the_users_own_is_used(toys: Toys, tmp_path: Path) -> None:
    toy = toys.start("1", "run", PREFECT_API_URL="http://127.0.0.1:9/api")
    out, err = toy.finish()
    assert toy.process.returncode != 0
    assert "http://127.0.0.1:9" in err or "connect" in err.lower()
    assert out == ""


def test_log_lines_stay_away_from_a_server_that_dies_with_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prefect.settings import get_current_settings

    def started(*_: object) -> AbstractContextManager[str]:
        return nullcontext("http://127.0.0.1:9/api")

    for name in ("PREFECT_API_URL", "PREFECT_LOGGING_TO_API_ENABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server, "_embedded_server", started)
    with server.api_server():
        assert not get_current_settings().logging.to_api.enabled
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with server.api_server():
        assert get_current_settings().logging.to_api.enabled


def test_threads_wait_passively_only_where_cores_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_num_cores", lambda: 4)
    assert engine.thread_environment(1, 2)["OMP_NUM_THREADS"] == "2"
    assert "OMP_WAIT_POLICY" not in engine.thread_environment(2, 2)
    assert engine.thread_environment(3, 2)["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize(
    ("visible", "devices"), [("0,2", ("0", "2")), ("", ()), ("-1", ()), ("GPU-1f", ("GPU-1f",))]
)
def test_cuda_devices_are_those_left_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert engine.cuda_devices() == devices


def test_a_worker_that_kept_dying_is_explained() -> None:
    killed = type("KilledWorker", (Exception,), {})("task", "worker")
    explained = engine._explained(killed)
    assert isinstance(explained, StageError)
    assert "fewer --workers" in str(explained)
    assert explained.__cause__ is killed
