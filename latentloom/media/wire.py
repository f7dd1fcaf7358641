"""Messages between a process and its media child: JSON with raw bytes behind it.

JSON, not pickle: the child parses files of unknown origin, so nothing it sends may run as code.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]
HEADER = struct.Struct("<IQ")
"""Bytes of the JSON text, bytes behind it."""
MAX_JSON_BYTES = 256 << 20
MAX_PAYLOAD_BYTES = 16 << 30


def send(sock: socket.socket, message: Message, payload: bytes | memoryview = b"") -> None:
    """Send one message.

    Args:
        sock: A blocking socket.
        message: JSON object.
        payload: Raw bytes behind it.
    """
    text = json.dumps(message, separators=(",", ":")).encode()
    view = memoryview(payload).cast("B")
    sock.sendall(HEADER.pack(len(text), view.nbytes) + text)
    if view.nbytes:
        sock.sendall(view)


def receive(
    sock: socket.socket, wait: Callable[[], None] | None = None
) -> tuple[Message, Callable[[memoryview], None], int]:
    """Receive one message; its raw bytes are left on the socket for the returned reader.

    Args:
        sock: A blocking socket.
        wait: Called before every read; returns once the socket is readable, or raises.

    Returns:
        The message, a function that fills a view with the raw bytes, and their number.

    Raises:
        EOFError: The other side has gone.
    """

    def fill(view: memoryview) -> None:
        while view.nbytes:
            if wait is not None:
                wait()
            count = sock.recv_into(view)
            if not count:
                raise EOFError("the other side has closed the connection")
            view = view[count:]

    def read(num_bytes: int) -> bytearray:
        buffer = bytearray(num_bytes)
        fill(memoryview(buffer))
        return buffer

    num_text, num_payload = HEADER.unpack(read(HEADER.size))
    if num_text > MAX_JSON_BYTES or num_payload > MAX_PAYLOAD_BYTES:
        raise EOFError("the other side sent nonsense")
    message: Message = json.loads(read(num_text))
    return message, fill, num_payload
