"""A real HTTP server on loopback that keeps what is posted to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "tok3n-nobody-may-see"


class Webhook(ThreadingHTTPServer):
    """Answers every POST with `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.status = 200
        self.received: list[tuple[str, dict[str, Any]]] = []

    @property
    def place(self) -> str:
        """Host, port and a path with a secret in it."""
        return f"127.0.0.1:{self.server_port}/{SECRET}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What came, without the paths it came by."""
        return [message for _, message in self.received]


class _Receiver(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def listening() -> Iterator[Webhook]:
    """Serve until the block ends."""
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
