"""Killed at every step of everything that writes, then done again: the same result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.schemas.event import Event
from latentloom.storage.backends import Backend
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import prune, verify
from latentloom.storage.opening import ensure_store, open_backend
from latentloom.storage.store import Store
from tests.storage.conftest import chunk_of, key_of
from tests.storage.faults import KillAfter, Killed

KEY = key_of("a")


def replace_a_lost_object(store: Store) -> None:
    ensure_store(store.backend, create=True)
    lost = store.commit(key_of("lost"), chunk_of(7), start=0, stop=4)
    store.backend.delete_folder(lost.object)
    store.commit(key_of("lost"), chunk_of(7), start=0, stop=4)
    store.put_run_file("01RUN", "state.json", b"{}")
    store.delete(key_of("lost"))


def commit_and_replace(store: Store) -> None:
    ensure_store(store.backend, create=True)
    store.register_run("01RUN", b'{"plan": 1}')
    store.commit(KEY, chunk_of(1), start=0, stop=4)
    store.commit(KEY, chunk_of(2), start=0, stop=4)
    store.commit(key_of("b"), chunk_of(3), start=4, stop=8)
    store.delete(key_of("b"))
    store.put_cached("probe", "x", 1)
    store.put_run_file("01RUN", "state.json", b"{}")
    store.append_events("01RUN", "w", [Event(time=1.0, kind="note", run="01RUN")])


def check(store: Store) -> None:
    assert verify(store).damages == []
    np.testing.assert_array_equal(store.read(KEY), chunk_of(1))
    assert store.find(key_of("b")) is None
    assert store.read_plan("01RUN") == b'{"plan": 1}'
    assert store.runs() == ["01RUN"]
    prune(store, keep=[KEY], orphan_age_seconds=-1)
    assert len([name for sub in store.backend.names("data") for name in names(store, sub)]) == 1


def names(store: Store, sub: str) -> list[str]:
    return store.backend.names(f"data/{sub}")


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_killed_after_every_operation_and_tried_again(kind: str, tmp_path: Path) -> None:
    def place(k: int) -> Backend:
        return open_backend(str(tmp_path / str(k)) if kind == "local" else f"memory://kill/{k}")

    counting = KillAfter(place(0), None)
    commit_and_replace(Store(counting))
    assert counting.count > 15
    for k in range(counting.count):
        killed = KillAfter(place(k + 1), k)
        with pytest.raises(Killed):
            commit_and_replace(Store(killed))
        assert killed.killed
        store = Store(place(k + 1))
        commit_and_replace(store)
        check(store)


class StepKiller:
    """Kills after the k-th call of those that change a disk, within an operation too."""

    CALLS = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")

    def __init__(self, patch: pytest.MonkeyPatch, k: int | None) -> None:
        self.k = k
        self.count = 0
        for name in self.CALLS:
            patch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.k is not None and self.count > self.k:
                raise Killed(f"before {call.__name__}")
            return call(*args, **kwargs)

        return counted


def test_killed_within_every_operation_and_tried_again(tmp_path: Path) -> None:
    scenario = replace_a_lost_object
    with pytest.MonkeyPatch.context() as patch:
        steps = StepKiller(patch, None)
        scenario(Store(LocalBackend(tmp_path / "count")))
    assert steps.count > 30
    for k in range(steps.count):
        store = Store(LocalBackend(tmp_path / str(k)))
        with pytest.MonkeyPatch.context() as patch:
            StepKiller(patch, k)
            with pytest.raises(Killed):
                scenario(store)
        scenario(store)
        assert verify(store).damages == []


def test_a_committed_chunk_survives_every_later_kill(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    first = store.commit(KEY, chunk_of(1), start=0, stop=4)
    for k in range(4):
        with pytest.raises(Killed):
            Store(KillAfter(store.backend, k)).commit(KEY, chunk_of(2), start=0, stop=4)
    assert store.find(KEY) == first
    np.testing.assert_array_equal(store.read(first), chunk_of(1))
