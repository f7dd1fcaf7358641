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
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from latentloom.errors import InterruptedRunError, LatentloomError
from latentloom.flows import seed
from latentloom.flows.environment import environment, prefect_settings, quiet_environment
from latentloom.flows.scratch import outermost_scratch, scratch_folder
from latentloom.tasks.stop import stop_requested

EMBEDDED = "LATENTLOOM_EMBEDDED_SERVER"
"""Set while the server in force is one that dies with its run."""
_START_SECONDS = 180.0  # 3 s when idle; a machine busy with other work may take very much longer
_DRAIN_SECONDS = 5.0
_FAREWELL = b"."  # a pipe that closes without it tells that the parent was killed
_SWEEPS, _SWEEP_SECONDS = 5, 0.2
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
        environment(
            {
                "PREFECT_HOME": str(home),
                "PREFECT_API_URL": url,
                # Nobody reads log lines there, and with each, one a chunk, the server would grow.
                "PREFECT_LOGGING_TO_API_ENABLED": "false",
                EMBEDDED: "1",
            }
        ),
        prefect_settings(heartbeats=False),
    ):
        try:
            yield url
        finally:
            _send_what_is_queued()


@contextmanager
def _embedded_server(home: Path, while_starting: Callable[[], None] | None) -> Iterator[str]:
    seeded = seed.copy_to(home)
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
            seed.forget(home)
            seeded = False
            process, port = _spawn(home, seeded)
            _await_health(process, port, home)
        if not seeded:
            seed.keep(home)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        _stop(process)


def _spawn(home: Path, seeded: bool) -> tuple[subprocess.Popen[bytes], int]:
    """Start the child in a session of its own, so that the terminal's Ctrl-C spares it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    with listener, (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(listener.fileno()), str(outermost_scratch())],
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
    with suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(_FAREWELL)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send_what_is_queued() -> None:
    """Let Prefect send its last states while there is a server to take them."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=_DRAIN_SECONDS)


def _keep_log(home: Path) -> Path:
    """Move the server's log out of the folder that is about to be removed."""
    log, kept = home / "server.log", seed.cache_folder() / "server.log"
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, kept)
        return kept
    return log


# The child's side.


def _serve(listener: int, scratch: Path) -> None:
    """Serve until the parent is gone; remove its temporary files if it had no time to."""
    _die_with_parent(scratch)
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


def _die_with_parent(scratch: Path) -> None:
    """Leave when the pipe closes, or when the kernel says so: a fork may hold the pipe open."""
    parent = os.getppid()

    def leave_if_orphaned(_number: int, _frame: FrameType | None) -> None:
        if os.getppid() != parent:  # the signal comes, too, when only a thread of it has ended
            _leave(scratch)

    signal.signal(signal.SIGUSR1, leave_if_orphaned)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    threading.Thread(target=_leave_when_pipe_closes, args=[scratch], daemon=True).start()


def _leave_when_pipe_closes(scratch: Path) -> None:
    if os.read(0, 1) != _FAREWELL:
        _leave(scratch)
    os._exit(0)


def _leave(scratch: Path) -> None:
    # Workers that are still dying may write once more.
    for _ in range(_SWEEPS):
        shutil.rmtree(scratch, ignore_errors=True)
        time.sleep(_SWEEP_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
