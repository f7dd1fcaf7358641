"""Prefect's API server, embedded: a child process on loopback that never outlives its run.

The parent binds the port and hands it over, so that no other program can take it in between.
The child holds the other end of a pipe; when the parent is gone, however it went, so is the child.
"""

import ctypes
import http.client
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentloom.errors import InterruptedRunError, LatentloomError
from latentloom.flows.environment import environment, prefect_settings, quiet_environment
from latentloom.flows.scratch import scratch_folder
from latentloom.tasks.stop import stop_requested

_START_SECONDS = 180.0  # 3 s when idle; a machine busy with other work may take very much longer
_DRAIN_SECONDS = 5.0
_RETRY_AFTER_SECONDS = b"0.1"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


@contextmanager
def api_server(while_starting: Callable[[], None] | None = None) -> Iterator[str]:
    """Provide a Prefect API: the one that PREFECT_API_URL names, or an embedded one.

    Args:
        while_starting: work to do while the server starts, such as slow imports.

    Yields:
        The API's URL, also set in the environment for the processes that are started meanwhile.

    Raises:
        InterruptedRunError: the user asked to stop before the server was up.
        LatentloomError: the server did not start.
    """
    quiet_environment()
    if url := os.environ.get("PREFECT_API_URL"):
        if while_starting is not None:
            while_starting()
        with prefect_settings():
            yield url
        return
    with (
        scratch_folder() as home,
        _embedded_server(home, while_starting) as url,
        environment({"PREFECT_HOME": str(home), "PREFECT_API_URL": url}),
        prefect_settings(heartbeats=False),
    ):
        try:
            yield url
        finally:
            _send_what_is_queued()


@contextmanager
def _embedded_server(home: Path, while_starting: Callable[[], None] | None) -> Iterator[str]:
    seeded = _seed_database(home)
    process, port = _spawn(home, seeded)
    try:
        if while_starting is not None:
            while_starting()
        try:
            _await_health(process, port, home)
        except LatentloomError:
            if not seeded or stop_requested():
                raise
            # The cached database may be to blame: once more, from nothing.
            _stop(process)
            seed_path().unlink(missing_ok=True)
            _remove_database(home)
            seeded = False
            process, port = _spawn(home, seeded)
            _await_health(process, port, home)
        if not seeded:
            _keep_seed(home)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        _stop(process)


def _spawn(home: Path, seeded: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Start the child in a session of its own, so that the terminal's Ctrl-C spares it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    with listener, (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "latentloom.flows.server", str(listener.fileno()), str(home)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=home,
            env={**os.environ, **_server_settings(home, seeded)},
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        return process, int(listener.getsockname()[1])


def _server_settings(home: Path, seeded: bool) -> dict[str, str]:
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_API_DATABASE_MIGRATE_ON_START": "false" if seeded else "true",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        "PREFECT_UI_ENABLED": "false",
        # Nobody reads events from a server that dies with the run; storing them costs 25 ms a task.
        "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
        # Prefect's own names for a server that serves one program and never schedules.
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        # The child finds what the parent finds, also from a checkout that is not installed.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }


def _await_health(process: subprocess.Popen[bytes], port: int, home: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if stop_requested():
            raise InterruptedRunError("Stopped before any work began.")
        if _is_healthy(port):
            return
        time.sleep(0.05)
    log = _keep_log(home)
    raise LatentloomError(
        f"The embedded Prefect server did not start (exit code {process.poll()}). Its log is "
        f"{log}. Try again, or set PREFECT_API_URL to a server of your own."
    )


def _is_healthy(port: int) -> bool:
    # The kernel queues this request until the server listens: no polling while it starts.
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)) as connection:
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()  # the child leaves when its pipe closes
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send_what_is_queued() -> None:
    """Let Prefect send its last states and logs while there is a server to take them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=_DRAIN_SECONDS)
    APILogWorker.drain_all(timeout=_DRAIN_SECONDS)


# The cached database: an empty one, migrated, since the migrations take several seconds.


def cache_folder() -> Path:
    """Name the user's cache folder for latentloom."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "latentloom"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "latentloom"
    return Path.home() / ".cache" / "latentloom"


def seed_path() -> Path:
    """Name the cached database for the Prefect that is installed."""
    return cache_folder() / f"prefect-{version('prefect')}.db"


def _seed_database(home: Path) -> bool:
    """Copy the cached database into `home`; a damaged one is removed, and counts as none."""
    database = home / "prefect.db"
    try:
        shutil.copyfile(seed_path(), database)
        if _is_migrated(database):
            return True
        seed_path().unlink(missing_ok=True)
    except OSError:
        pass
    _remove_database(home)
    return False


def _is_migrated(database: Path) -> bool:
    try:
        with closing(sqlite3.connect(database)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
            migrated = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return sound and migrated is not None
    except sqlite3.Error:
        return False


def _keep_seed(home: Path) -> None:
    """Cache the fresh database. SQLite's own backup sees what is still in the write-ahead log."""
    with suppress(OSError, sqlite3.Error):
        seed_path().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=seed_path().parent, prefix="prefect-", suffix=".tmp")
        os.close(handle)
        with _removed_afterwards(Path(name)):
            with (
                closing(sqlite3.connect(home / "prefect.db")) as source,
                closing(sqlite3.connect(name)) as target,
            ):
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")
            os.replace(name, seed_path())


@contextmanager
def _removed_afterwards(path: Path) -> Iterator[None]:
    """Remove a temporary file that was not renamed into place."""
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_database(home: Path) -> None:
    for path in home.glob("prefect.db*"):
        path.unlink(missing_ok=True)


def _keep_log(home: Path) -> Path:
    """Move the server's log out of the folder that is about to be removed."""
    log, kept = home / "server.log", cache_folder() / "server.log"
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
        return kept
    return log


# The child's side.


def _serve(listener: int, home: Path) -> None:
    """Serve until the parent is gone."""
    _die_with_parent(home)
    import uvicorn  # the parent does without these two
    from prefect.server.api.server import create_app

    config = uvicorn.Config(
        _hasten_retries(create_app()),
        lifespan="on",
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


def _hasten_retries(app: _App) -> _App:
    """Let clients retry at once: two writers meet in SQLite for milliseconds, not for 2 s."""

    async def hastened(scope: _Message, receive: _Receive, send: _Send) -> None:
        async def send_hastened(message: _Message) -> None:
            if message.get("status") == http.client.SERVICE_UNAVAILABLE:
                headers = [*message.get("headers", ()), (b"retry-after", _RETRY_AFTER_SECONDS)]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, send_hastened)

    return hastened


def _die_with_parent(home: Path) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    threading.Thread(target=_leave_when_pipe_closes, args=[home], daemon=True).start()


def _leave_when_pipe_closes(home: Path) -> None:
    while os.read(0, 1):
        pass
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
