"""The services around an archive, each a process of its own: PostgreSQL, a Prefect server, workers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.lasting import PATIENCE_SECONDS, wait_for

LOOPBACK = "127.0.0.1"
AUTHORITY = "operator:not-a-secret"


def free_port() -> int:
    """Choose a port that nobody listens on."""
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def postgres_folder() -> Path | None:
    """Return the folder of PostgreSQL's programs; Debian keeps it off the PATH."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(os.path.realpath(found)).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return installed[-1].parent if installed else None


@contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """Run a cluster of its own in a folder that is removed; yields Prefect's URL of its database."""
    # PostgreSQL refuses to run as root.
    owner = "nobody" if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if owner is not None:
            shutil.chown(folder, owner)

        def call(program: str, *arguments: str) -> None:
            command = [str(programs / program), "-D", str(folder / "data"), *arguments]
            log = folder.with_suffix(".log")
            with log.open("ab") as output:
                ended = subprocess.run(
                    command,
                    user=owner,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            assert ended.returncode == 0, log.read_text()
            log.unlink()

        call("initdb", "--username=prefect", "--auth=trust", "--no-sync")
        options = f"-h {LOOPBACK} -p {port} -k {folder} -c fsync=off"
        call("pg_ctl", "start", "-w", "-t", str(int(PATIENCE_SECONDS)), "-o", options)
        try:
            yield f"postgresql+asyncpg://prefect@{LOOPBACK}:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "-m", "immediate")


class Process:
    """A program with a log, that is killed with all that it has started."""

    def __init__(self, log: Path, env: Mapping[str, str], *arguments: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=log.parent,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End as a machine does that loses power: all of its processes, with SIGKILL."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def pids(self) -> list[int]:
        """Return its processes, itself first."""
        try:
            program = psutil.Process(self._process.pid)
            return [program.pid, *(child.pid for child in program.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []

    def is_alive(self) -> bool:
        """Tell whether it runs."""
        return self._process.poll() is None


class Server:
    """A Prefect server on a port that stays, with what its clients need to reach it."""

    def __init__(self, folder: Path, database: str) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"http://{LOOPBACK}:{self._port}/api"
        self.client_env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "PREFECT_"))},
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": AUTHORITY,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            # As docs/operations.md advises: enough for a server that is restarted on a busy machine.
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "DO_NOT_TRACK": "1",
            "NO_PROXY": LOOPBACK,
            "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parents[2])]),
        }
        self._env = {
            **self.client_env,
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_API_AUTH_STRING": AUTHORITY,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        self._process: Process | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        place = ("--host", LOOPBACK, "--port", str(self._port), "--no-ui")
        process = Process(
            self._folder / "server.log", self._env, "prefect", "server", "start", *place
        )
        self._process = process
        wait_for(lambda: not process.is_alive() or self.is_healthy(), "Prefect's server")
        assert process.is_alive(), process.log.read_text()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def is_healthy(self) -> bool:
        """Ask it."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
