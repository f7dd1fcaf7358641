"""Processes and threads that do the same thing at once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np

from latentloom.schemas.record import Record
from latentloom.storage.maintenance import verify
from latentloom.storage.store import Store
from tests.storage.conftest import chunk_of, key_of

ROOT = Path(__file__).parents[2]

# Forks before anything has started a thread, so that imports are paid once.
RACE = """
import os, sys, time
import numpy as np
from latentloom.storage.store import Store

start = time.time() + 0.1
for number in range(4):
    if os.fork() == 0:
        break
else:
    sys.exit(max(os.wait()[1] for _ in range(4)))
store = Store.open(sys.argv[1])
array = np.full((4, 4, 8, 8), number, dtype="float32")
time.sleep(max(0, start - time.time()))
lines = []
for key in sys.argv[2:]:
    record = store.commit(key, array, start=0, stop=4)
    lines.append(f"{record.object} {store.read(record)[0, 0, 0, 0]}")
sys.stdout.write(";".join(lines) + chr(10))
"""


def test_processes_that_commit_different_bytes_agree_on_one_record(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    Store.open(uri)
    keys = [key_of(number) for number in range(12)]
    race = subprocess.run(
        [sys.executable, "-c", RACE, uri, *keys],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = race.stdout.splitlines()
    assert len(answers) == 4
    assert len(set(answers)) == 1

    store = Store.open(uri)
    report = verify(store)
    assert (report.damages, report.checked) == ([], len(keys))
    folders = store.backend.names("data")
    assert sum(len(store.backend.names(f"data/{sub}")) for sub in folders) == len(keys)


def test_threads_that_commit_different_bytes_agree_on_one_record(any_store: Store) -> None:
    barrier = Barrier(4)

    def race(seed: int) -> Record:
        barrier.wait()
        return any_store.commit(key_of("a"), chunk_of(seed), start=0, stop=4)

    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(race, range(4)))
    assert len({record.object for record in records}) == 1
    assert len(any_store.backend.names(f"data/{key_of('a')[:2]}")) == 1
    assert verify(any_store).damages == []


def test_threads_that_replace_a_lost_object_all_end_with_bytes(store: Store) -> None:
    for _ in range(10):
        store.delete(key_of("a"))
        lost = store.commit(key_of("a"), chunk_of(0), start=0, stop=4)
        store.backend.delete_folder(lost.object)
        with ThreadPoolExecutor(4) as pool:
            records = list(
                pool.map(
                    lambda seed: store.commit(key_of("a"), chunk_of(seed), start=0, stop=4),
                    range(4),
                )
            )
        for record in records:
            assert np.isfinite(store.read(record)).all()
        assert verify(store).damages == []
