"""The media child: takes one request after another from a socket, until its parent has gone."""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable

import av
import numpy as np

from latentloom.errors import LatentloomError, MediaError, ResourceError
from latentloom.media import wire
from latentloom.media.child import faults, operations
from latentloom.media.child.channel import Answer, Array

PR_SET_PDEATHSIG = 1
PROGRESS_SECONDS = 0.05

Request = tuple[wire.Message, bytearray]


class SocketChannel:
    """Tells the parent how the work goes on."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._told_at = 0.0

    def progress(self, frame: int) -> None:
        """Say that frame ``frame`` is being worked on; cheap enough to call for each."""
        faults.strike(frame)
        now = time.monotonic()
        if now - self._told_at > PROGRESS_SECONDS:
            self._told_at = now
            wire.send(self._sock, {"kind": "progress", "frame": frame})

    def frame(self, slot: int, frame: int, array: Array) -> None:
        """Hand over one frame."""
        message = {"kind": "frame", "slot": slot, "frame": frame}
        wire.send(self._sock, message, np.ascontiguousarray(array).data)


def main(fileno: int, parent: int, memory_bytes: int) -> None:
    """Serve requests from a socket.

    Args:
        fileno: The socket's number.
        parent: Process that must stay alive.
        memory_bytes: Limit of the address space.
    """
    _die_with(parent)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sock = socket.socket(fileno=fileno)
    requests: queue.Queue[Request] = queue.Queue()
    threading.Thread(target=_listen, args=(sock, parent, requests), daemon=True).start()
    channel = SocketChannel(sock)
    wire.send(sock, {"kind": "ready"})
    while True:
        message, payload = requests.get()
        answer, raw = _serve(operations.OPERATIONS[message.pop("op")], message, payload, channel)
        wire.send(sock, answer, raw)


def _serve(
    operation: Callable[..., Answer],
    message: wire.Message,
    payload: bytearray,
    channel: SocketChannel,
) -> Answer:
    try:
        answer, raw = operation(channel, payload, **message)
    except (LatentloomError, av.FFmpegError, MemoryError, OSError) as error:
        return _explain(error), b""
    except Exception as error:
        traceback.print_exc()
        return _failure(f"{type(error).__name__}: {error}", is_named=False), b""
    return {"kind": "result", **answer}, raw


def _explain(error: Exception) -> wire.Message:
    code = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        return _failure(
            "the media process ran out of its memory limit. If the file is sound and that large, "
            "raise LATENTLOOM_MEDIA_MEMORY_BYTES.",
            is_named=False,
        )
    if code == errno.ENOSPC:
        return _failure(
            "the disk is full. Free some space, then run the same command again.",
            is_resource=True,
            is_named=False,
        )
    if isinstance(error, MediaError | ResourceError):
        return _failure(str(error), is_resource=isinstance(error, ResourceError))
    return _failure(f"{type(error).__name__}: {error}", is_named=False)


def _failure(text: str, *, is_resource: bool = False, is_named: bool = True) -> wire.Message:
    """Make the answer; a text that does not name the file gets its name from the parent."""
    return {"kind": "error", "text": text, "resource": is_resource, "named": is_named}


def _listen(sock: socket.socket, parent: int, requests: queue.Queue[Request]) -> None:
    """Queue what arrives; leave as soon as nobody is there to send more."""

    def wait() -> None:
        while not select.select([sock], [], [], 1.0)[0]:
            if os.getppid() != parent:
                os._exit(0)

    try:
        while True:
            message, fill, size = wire.receive(sock, wait)
            payload = bytearray(size)
            fill(memoryview(payload))
            requests.put((message, payload))
    except (EOFError, OSError):
        os._exit(0)


def _die_with(parent: int) -> None:
    """Be killed when the thread that started this process ends, whatever is running here."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
