from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latentloom.errors import HeldError, InterruptedRunError
from latentloom.storage import layout, leases
from latentloom.storage.leases import Holder, expired_leases, holder, lease, try_lease
from latentloom.storage.store import Store
from tests.storage.faults import KillAfter, Killed

ROOT = Path(__file__).parents[2]

HOLDING = """
import sys, time
from latentloom.storage.leases import try_lease
from latentloom.storage.store import Store

assert try_lease(Store.open(sys.argv[1]), "plan")
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def another_process(uri: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease ``plan``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, uri], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lease_is_held_until_it_is_released(any_store: Store) -> None:
    with lease(any_store, "plan") as held:
        assert not held.lost
        assert try_lease(any_store, "plan") is None
        with (
            pytest.raises(HeldError, match=f"process {os.getpid()}"),
            lease(any_store, "plan", wait=False),
        ):
            pass
        with lease(any_store, "other", wait=False):
            pass
    assert any_store.backend.names(layout.LEASES) == []
    with lease(any_store, "plan", wait=False):
        pass


def test_a_living_process_keeps_its_lease_and_a_killed_one_loses_it_at_once(store: Store) -> None:
    with another_process(store.uri) as process:
        assert try_lease(store, "plan") is None
        assert holder(store, "plan") is not None
        # Not waited for: a zombie holds nothing either.
        os.kill(process.pid, signal.SIGKILL)
        start = time.monotonic()
        with lease(store, "plan", poll_seconds=0.01):
            assert time.monotonic() - start < 5


def test_a_waiter_gets_the_lease_when_it_is_released(store: Store) -> None:
    taken = try_lease(store, "plan")
    assert taken is not None
    threading.Timer(0.1, taken.release).start()
    with lease(store, "plan", poll_seconds=0.01) as mine:
        assert not mine.lost


def test_waiting_ends_when_the_user_says_so(store: Store) -> None:
    with (
        lease(store, "plan"),
        pytest.raises(InterruptedRunError, match="resumes"),
        lease(store, "plan", poll_seconds=0.01, stop=lambda: True),
    ):
        pass


def stranger(store: Store, **changes: object) -> None:
    """Write a lease of a process elsewhere."""
    fields = {"host": "far", "boot": "x", "pid": 1, "started": "1", "token": "t", **changes}
    store.backend.write(layout.lease_path("plan"), json.dumps(fields).encode())


def test_a_holder_elsewhere_loses_its_lease_without_renewal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger(store)
    assert try_lease(store, "plan") is None
    assert expired_leases(store) == []
    monkeypatch.setattr(leases, "LEASE_SECONDS", -1.0)
    assert expired_leases(store) == [layout.lease_path("plan")]
    taken = try_lease(store, "plan")
    assert taken is not None
    taken.release()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"pid": "x"}'])
def test_a_damaged_lease_expires_by_age(
    store: Store, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.backend.write(layout.lease_path("plan"), content)
    assert try_lease(store, "plan") is None
    assert holder(store, "plan") is None
    os.utime(Path(store.uri) / layout.lease_path("plan"), (0, 0))
    with lease(store, "plan", wait=False):
        pass


def test_a_lease_is_renewed_and_notices_that_it_was_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    path = Path(store.uri) / layout.lease_path("plan")
    with lease(store, "plan") as held:
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0)

        def taken_and_noticed() -> bool:
            # A renewal that has just found the lease its own may write over one that takes it.
            stranger(store)
            return held.lost

        until(taken_and_noticed)
    assert b"far" in path.read_bytes()


def test_a_lease_whose_file_vanished_is_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.01)
    with lease(store, "plan") as held:
        store.backend.delete(layout.lease_path("plan"))
        until(lambda: held.lost)


def until(condition: object) -> None:
    assert callable(condition)
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


def test_a_process_is_told_from_a_later_one_with_its_number() -> None:
    me = Holder.this_process()
    assert not me.is_dead()
    assert Holder(me.host, me.boot, me.pid, "0").is_dead()
    assert not Holder("far", me.boot, me.pid, "0").is_dead()
    assert not Holder(me.host, "before", me.pid, "0").is_dead()


def test_any_text_can_be_the_name_of_a_lease(store: Store) -> None:
    with lease(store, "/videos/out/../a film.mp4"):
        assert try_lease(store, "/videos/out/../a film.mp4") is None


def test_killed_while_taking_or_giving_back_a_lease_blocks_nobody(store: Store) -> None:
    for k in range(4):
        killed = Store(KillAfter(store.backend, k))
        try:
            with lease(killed, f"plan-{k}"):
                pass
        except Killed:
            pass
        # The same process lives on here, so the lease is its own and waits for its age.
        path = Path(store.uri) / layout.lease_path(f"plan-{k}")
        if path.exists():
            os.utime(path, (0, 0))
        with lease(store, f"plan-{k}", wait=False):
            pass
