"""A Prefect server that lasts (SQLite) and a worker of a process pool, both real, both in a folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

CHECKOUT = Path(__file__).parents[1]
PATIENCE_SECONDS = 500.0
POOL = "latentloom"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_QUICK = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
    "PREFECT_API_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
    "DO_NOT_TRACK": "1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
}
FoundT = TypeVar("FoundT")


def wait_for(
    look: Callable[[], FoundT | None], what: str, *, seconds: float = PATIENCE_SECONDS
) -> FoundT:
    """Look until something is found; on a busy machine that may take long."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.1)
    return found


class Service:
    """A server, and what is started beside it."""

    def __init__(self, folder: Path, *, ui: bool = False) -> None:
        self.folder = folder
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._started: list[subprocess.Popen[bytes]] = []
        self._client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        home = folder / "prefect"
        self.environment = {
            **{
                k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "LATENTLOOM_"))
            },
            **_QUICK,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
            "PYTHONPATH": str(CHECKOUT),
        }
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self.prefect(*words, *([] if ui else ["--no-ui"]))
        wait_for(self._is_up, "server")

    def prefect(self, *words: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command of Prefect's that goes on until the service is stopped."""
        with (self.folder / "service.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words],
                cwd=CHECKOUT,
                env=self.environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def start_worker(self, *words: str, **variables: str) -> None:
        """Start a worker of the pool, and wait until the server knows it."""
        self.prefect(
            "worker",
            "start",
            "--pool",
            POOL,
            "--type",
            "process",
            "--name",
            "w",
            *words,
            **variables,
        )
        wait_for(lambda: self.post(f"work_pools/{POOL}/workers/filter", {}), "worker")

    def run(self, *command: str, folder: Path = CHECKOUT) -> str:
        """Run a command as an operator does: ``prefect ...`` or ``latentloom ...``."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, recipe: str, *overrides: str, folder: Path) -> dict[str, Any]:
        """Submit a recipe; return the ids of run and flow run."""
        stdout = self.run("latentloom", "submit", recipe, *overrides, "--json", folder=folder)
        made: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return made

    def post(self, path: str, data: dict[str, Any]) -> Any:
        """Post to the API, and return the answer; nothing where there is nothing yet."""
        answer = self._client.post(path, json=data)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def flow_run(self, flow_run: str) -> dict[str, Any]:
        """Read a flow run."""
        found: dict[str, Any] = self._client.get(f"flow_runs/{flow_run}").raise_for_status().json()
        return found

    def flow_runs(
        self, deployment: str | None = None, flow: str | None = None
    ) -> list[dict[str, Any]]:
        """Read flow runs in the order in which they began."""
        query: dict[str, Any] = {"sort": "START_TIME_ASC"}
        if deployment is not None:
            query["deployments"] = {"name": {"any_": [deployment]}}
        if flow is not None:
            query["flows"] = {"name": {"any_": [flow]}}
        found: list[dict[str, Any]] = self.post("flow_runs/filter", query)
        return found

    def wait_for_state(self, flow_run: str, *states: str) -> dict[str, Any]:
        """Wait until a flow run is in one of some states, any final one by default."""
        wanted = set(states) or FINAL

        def look() -> dict[str, Any] | None:
            found = self.flow_run(flow_run)
            return found if found["state_type"] in wanted else None

        return wait_for(look, f"flow run in state {' or '.join(sorted(wanted))}")

    def retry(self, flow_run: str) -> None:
        """Do what the button Retry of the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        answer = self.post(f"flow_runs/{flow_run}/set_state", {"state": state, "force": False})
        assert answer["status"] == "ACCEPT", answer

    def log(self) -> str:
        """Return what server and workers wrote."""
        return (self.folder / "service.log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop all that was started, and what that has started."""
        self._client.close()
        for process in reversed(self._started):
            children = _descendants(process)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()

    def _is_up(self) -> bool:
        assert all(process.poll() is None for process in self._started), self.log()
        with suppress(httpx.HTTPError):
            return self._client.get("health").is_success
        return False


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """Run a server until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    service = Service(folder)
    try:
        yield service
    finally:
        service.stop()


def spans(runs: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return when runs began and ended; times of one format compare as text."""
    return sorted((run["start_time"], run["end_time"]) for run in runs)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children(recursive=True)
    return []
