"""The media child of this process: started on demand, watched, and started again after a crash.

Why a child: a damaged file can crash or hang a decoder, and must not take a run with it.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from latentloom.errors import MediaError, ResourceError
from latentloom.media import wire

MEMORY_BYTES = 8 << 30
"""Address space of the child; 4K HEVC decodes in 1 GiB, 4K x265 encodes in 3."""
INACTIVITY_SECONDS = 2.0
"""CPU time that the child may use without progress: a loaded machine raises no false alarm."""
START_SECONDS = 60.0
"""The same for imports, which a cold disk makes slow."""
ENCODING_SECONDS = 60.0
"""The same for encoders, which look ahead; their input is our own."""
ASLEEP_SECONDS = 30.0
"""Wall time without progress, for a child that waits for something that never comes."""
POLL_SECONDS = 0.2

FrameSink = Callable[[int, Callable[[memoryview], None]], None]
Result = tuple[wire.Message, bytes]


def call(
    op: str,
    arguments: wire.Message,
    payload: bytes | memoryview = b"",
    *,
    what: str,
    sink: FrameSink | None = None,
    limit_seconds: float = INACTIVITY_SECONDS,
) -> Result:
    """Have the child of this process do one thing. Threads take turns.

    Args:
        op: Name of the operation.
        arguments: JSON object.
        payload: Raw bytes.
        what: What is done to which file, for the error's text: "decoding 'clip.mp4'".
        sink: Takes each frame that the child sends: its number and a function that fills a view.
        limit_seconds: CPU seconds that the child may use without progress.

    Returns:
        The child's answer, and raw bytes.

    Raises:
        MediaError: The child says so, crashed, hung, or ran out of memory.
        ResourceError: The disk is full.
    """
    limit = float(os.environ.get("LATENTLOOM_MEDIA_INACTIVITY_SECONDS", limit_seconds))
    slot = _slot()
    with slot.lock:
        if slot.child is None or not slot.child.is_alive():
            slot.close()
            slot.child = _keeper.submit(_Child).result()
            slot.generation += 1
        try:
            return slot.child.talk({"op": op, **arguments}, payload, what, sink, limit)
        except _Lost:
            slot.close()
            raise
        except BaseException:
            # Ctrl-C in mid-answer leaves bytes on the socket that belong to nobody.
            if slot.child.in_answer:
                slot.close()
            raise


def generation() -> int:
    """Return a number that changes when the child is a new one, so that what it held is gone."""
    return _slot().generation


def is_running() -> bool:
    """Return whether this process has a child."""
    return _slot().child is not None


def stop() -> None:
    """End the child of this process, if there is one; the next call starts another."""
    slot = _slot()
    with slot.lock:
        slot.close()


class _Lost(MediaError):
    """The child has gone; told apart here only, callers see a MediaError."""

    def __reduce__(self) -> tuple[type[MediaError], tuple[object, ...]]:
        return MediaError, self.args


class _Slot:
    """The one child of a process and the lock before it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.child: _Child | None = None
        self.generation = 0

    def close(self) -> None:
        if self.child is not None:
            self.child.close()
            self.child = None


class _Child:
    """One running child."""

    def __init__(self) -> None:
        self.in_answer = False
        self.last_frame: int | None = None
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self.sock, theirs = socket.socketpair()
        arguments = theirs.fileno(), os.getpid(), _memory_limit()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "latentloom.media.child", *map(str, arguments)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=self.log,
                env=_environment(os.environ),
                start_new_session=True,
            )
        self._await_ready()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.sock.close()
        if self.is_alive():
            self.process.kill()
        self.process.wait()
        self.log.close()

    def _await_ready(self) -> None:
        """Wait for the child's imports, which no limit on decoding should count."""
        watch, what = _Watch(self.process.pid, START_SECONDS), "starting"
        try:
            wire.receive(self.sock, lambda: watch.wait(self.sock, what, None))
        except (MediaError, EOFError, ConnectionError) as error:
            if not isinstance(error, MediaError):
                error = _Lost(self._epitaph(what))
            self.close()
            raise error from None

    def talk(
        self,
        message: wire.Message,
        payload: bytes | memoryview,
        what: str,
        sink: FrameSink | None,
        limit: float,
    ) -> Result:
        watch = _Watch(self.process.pid, limit)
        self.last_frame = None
        self.in_answer = True
        try:
            wire.send(self.sock, message, payload)
            while True:
                answer, fill, size = wire.receive(
                    self.sock, lambda: watch.wait(self.sock, what, self.last_frame)
                )
                watch.reset()
                kind = answer.pop("kind")
                if kind == "progress":
                    self.last_frame = answer["frame"]
                elif kind == "frame" and sink is not None:
                    self.last_frame = answer["frame"]
                    sink(answer["slot"], fill)
                else:
                    return self._finish(kind, answer, fill, size, what)
        except (EOFError, ConnectionError) as error:
            raise _Lost(self._epitaph(what)) from error

    def _finish(
        self,
        kind: str,
        answer: wire.Message,
        fill: Callable[[memoryview], None],
        size: int,
        what: str,
    ) -> Result:
        payload = bytearray(size)
        fill(memoryview(payload))
        self.in_answer = False
        if kind == "error":
            error = ResourceError if answer["resource"] else MediaError
            raise error(answer["text"] if answer["named"] else f"{what}: {answer['text']}")
        return answer, bytes(payload)

    def _epitaph(self, what: str) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if lines and code > 0:
            reason += f": {lines[-1]}"
        return (
            f"the media process crashed while {what}{_near(self.last_frame)} ({reason}). The file "
            "may be damaged: play it, and convert it if other programs fail too. "
            "Finished chunks are kept."
        )


class _Watch:
    """Counts what the child uses between two signs of progress."""

    def __init__(self, pid: int, limit: float) -> None:
        self.pid = pid
        self.limit = limit
        self.reset()

    def reset(self) -> None:
        self.cpu_at: float | None = None
        self.wall_at = time.monotonic()

    def wait(self, sock: socket.socket, what: str, frame: int | None) -> None:
        """Return once the socket can be read, or raise when that takes too long."""
        while not select.select([sock], [], [], POLL_SECONDS)[0]:
            cpu = _cpu_seconds(self.pid)
            if self.cpu_at is None:
                self.cpu_at = cpu
            silent = time.monotonic() - self.wall_at
            used = silent if cpu is None or self.cpu_at is None else cpu - self.cpu_at
            if used > self.limit or silent > max(ASLEEP_SECONDS, self.limit):
                raise _Lost(
                    f"the media process made no progress for {silent:.1f} s ({used:.1f} s of CPU "
                    f"time) while {what}{_near(frame)}, and was stopped. The file may be damaged: "
                    "play it, and convert it if other programs hang too. Finished chunks are kept."
                )


def _near(frame: int | None) -> str:
    return "" if frame is None else f", near frame {frame}"


def _cpu_seconds(pid: int) -> float | None:
    """Return the CPU time of a process, or None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def _memory_limit() -> int:
    return int(os.environ.get("LATENTLOOM_MEDIA_MEMORY_BYTES", MEMORY_BYTES))


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Let the child import what this process imports, and start no threads of numpy's."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _slot() -> _Slot:
    """Return the slot of this very process: a fork must not talk to its parent's child."""
    global _current, _keeper
    if _current.pid != os.getpid():
        _current = _Slot()
        _keeper = ThreadPoolExecutor(1, "media-keeper")
    return _current


_current = _Slot()
# The signal that ends an orphan follows the thread that started it: so one thread that lives as
# long as the process starts every child.
_keeper = ThreadPoolExecutor(1, "media-keeper")


@atexit.register
def _close_at_exit() -> None:
    if _current.pid == os.getpid() and _current.lock.acquire(blocking=False):
        _current.close()
