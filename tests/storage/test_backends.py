from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentloom.errors import StoreError
from latentloom.storage.backends import Backend, local_path
from latentloom.storage.local import LocalBackend
from latentloom.storage.opening import ensure_store
from latentloom.storage.remote import FsspecBackend
from latentloom.storage.store import Store
from tests.storage.conftest import chunk_of, key_of

ROOT = Path(__file__).parents[2]


def watch(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[str]:
    """Record what a local backend does to the disk, in order."""
    steps: list[str] = []

    def relative(place: Any) -> str:
        path = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) else str(place)
        first = Path(path).relative_to(root).parts[:1]
        return first[0] if first else "."

    for name in ("fsync", "rename", "replace", "link"):
        call = getattr(os, name)

        def watched(*args: Any, name: str = name, call: Any = call, **kwargs: Any) -> Any:
            kind = f" {'folder' if os.path.isdir(args[-1]) else 'file'}" if name == "fsync" else ""
            steps.append(f"{name}{kind} {relative(args[-1])}")
            return call(*args, **kwargs)

        monkeypatch.setattr(os, name, watched)
    return steps


def test_an_object_is_durable_before_its_record_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(str(tmp_path))
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.delete(key_of("a"))
    steps = watch(monkeypatch, tmp_path)
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    assert steps == [
        "fsync file tmp",
        "fsync file tmp",
        "fsync folder tmp",
        "rename data",
        "fsync folder data",
        "fsync file tmp",
        "link records",
        "fsync folder records",
    ]


def test_a_new_folder_is_made_durable_in_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = LocalBackend(tmp_path)
    backend.create("x", b"")
    steps = watch(monkeypatch, tmp_path)
    backend.write("runs/01RUN/state.json", b"{}")
    assert steps == [
        "fsync file tmp",
        "fsync folder .",
        "fsync folder runs",
        "replace runs",
        "fsync folder runs",
    ]


def test_creation_is_exclusive_and_overwriting_is_not(any_store: Store) -> None:
    backend = any_store.backend
    backend.create("leases/a.json", b"1")
    with pytest.raises(FileExistsError):
        backend.create("leases/a.json", b"2")
    assert backend.read("leases/a.json") == backend.read_buffer("leases/a.json") == b"1"
    backend.write("leases/a.json", b"22")
    info = backend.info("leases/a.json")
    assert (info.path, info.size) == ("leases/a.json", 2)
    assert info.modified > 1_600_000_000


def test_what_is_listed_is_what_was_written(any_store: Store) -> None:
    backend = any_store.backend
    backend.write_folder("data/ab/x.1", {"zarr.json": (b"1", b"2"), "c.0": (b"3",)})
    backend.write("data/cd/y", b"")
    assert backend.names("data") == ["ab", "cd"]
    assert backend.names("data/ab/x.1") == ["c.0", "zarr.json"]
    assert backend.names("nowhere") == []
    assert [(info.path, info.size) for info in backend.walk("data")] == [
        ("data/ab/x.1/c.0", 1),
        ("data/ab/x.1/zarr.json", 2),
        ("data/cd/y", 0),
    ]
    assert list(backend.walk("nowhere")) == []


def test_what_is_not_there_is_not_found_and_can_be_deleted(any_store: Store) -> None:
    backend = any_store.backend
    backend.write_folder("data/ab/x.1", {"c.0": (b"3",)})
    for path in ("data/ab/none", "data/ab", "none"):
        with pytest.raises(OSError, match=r".") as caught:
            backend.read(path)
        assert isinstance(caught.value, (FileNotFoundError, IsADirectoryError))
    with pytest.raises(FileNotFoundError):
        backend.info("none")
    backend.delete("data/ab/none")
    backend.delete_folder("data/ab/none")
    backend.delete_folder("data/ab/x.1")
    backend.delete_folder("data/ab/x.1")
    assert list(backend.walk("data")) == []


def test_a_file_system_that_cannot_create_exclusively_is_refused() -> None:
    class Overwriting(FsspecBackend):
        def create(self, path: str, data: bytes, *, durable: bool = True) -> None:
            self.write(path, data)

    with pytest.raises(StoreError, match="cannot create a file exclusively"):
        ensure_store(Overwriting("memory://overwriting"), create=True)


def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreError, match="has no hard links"):
        Store.open(str(tmp_path))


class _Answers:
    """A file system whose ``pipe_file`` answers as told, after or instead of writing."""

    def __init__(self, fs: Any, answers: list[BaseException | None], *, writes: bool) -> None:
        self.fs = fs
        self.answers = answers
        self.writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fs, name)

    def pipe_file(self, path: str, data: bytes, mode: str) -> None:
        answer = self.answers.pop(0)
        if answer is None or self.writes:
            self.fs.pipe_file(path, data, mode=mode)
        if answer is not None:
            raise answer


def answering(name: str, answers: list[BaseException | None], *, writes: bool) -> Backend:
    backend = FsspecBackend(f"memory://answers/{name}")
    backend._fs = _Answers(backend._fs, answers, writes=writes)
    return backend


def test_a_conflict_with_another_creation_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentloom.storage.remote._CREATE_PAUSE_SECONDS", 0.0)
    busy = OSError(errno.EIO, "ConditionalRequestConflict")
    backend = answering("conflict", [busy, busy, None], writes=False)
    backend.create("a", b"1")
    assert backend.read("a") == b"1"
    with pytest.raises(OSError, match="Conflict"):
        answering("always", [busy] * 4, writes=False).create("a", b"1")


def test_a_creation_whose_answer_was_lost_says_that_the_file_exists() -> None:
    backend = answering("lost", [TimeoutError("no answer")], writes=True)
    with pytest.raises(FileExistsError):
        backend.create("a", b"1")
    with pytest.raises(PermissionError):
        answering("denied", [PermissionError("no")], writes=False).create("a", b"1")


def test_errors_of_client_libraries_become_os_errors() -> None:
    backend = answering("odd", [RuntimeError("credentials")] * 4, writes=False)
    with pytest.raises(OSError, match="RuntimeError: credentials"):
        backend.create("a", b"1")


LIMITED = """
import resource, signal, sys
import numpy as np
from latentloom.errors import ResourceError
from latentloom.storage.store import Store

store = Store.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    store.commit("ab" * 32, np.ones((4, 4, 64, 64), "float32"), start=0, stop=4)
except ResourceError as error:
    print(error)
"""


def test_a_write_that_really_fails_leaves_nothing(tmp_path: Path) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    found = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "run the same command again" in found.stdout
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["store.json", "tmp"]


@pytest.mark.parametrize("uri", ["s3://b/x", "memory://x", "simplecache::s3://b/x"])
def test_a_uri_is_no_local_path(uri: str) -> None:
    assert local_path(uri) is None
