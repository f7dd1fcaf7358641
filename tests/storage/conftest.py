"""Stores to test on: a folder, memory, and S3 over HTTP on loopback."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from latentloom.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKET = "latentloom-tests"


def key_of(name: object) -> str:
    """A chunk key for a test."""
    return hashlib.sha256(str(name).encode()).hexdigest()


def chunk_of(seed: int, *, frames: int = 4, dtype: str = "float16") -> NDArray[Any]:
    """Latents for a test."""
    return np.random.default_rng(seed).standard_normal((frames, 4, 8, 8)).astype(dtype)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests lose no power; ``test_backends.py`` holds that fsync is called where it must be."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in a local folder."""
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server on loopback, with its address and credentials in the environment."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        fs.mkdir(BUCKET)
        yield f"http://{host}:{port}"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def s3_uri(s3_endpoint: str) -> str:
    """An empty place on S3."""
    return f"s3://{BUCKET}/{secrets.token_hex(4)}"


@pytest.fixture(params=["local", "memory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """The same test on each kind of store."""
    places: dict[str, Callable[[], str]] = {
        "local": lambda: str(tmp_path / "store"),
        "memory": lambda: f"memory://{secrets.token_hex(4)}",
        "s3": lambda: str(request.getfixturevalue("s3_uri")),
    }
    return Store.open(places[request.param]())
