from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from latentloom.schemas.event import Event
from latentloom.storage import layout
from latentloom.storage.leases import lease
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import Removed, prune, usage, verify
from latentloom.storage.store import Store
from tests.storage.conftest import chunk_of, key_of
from tests.storage.faults import KillAfter, Killed

OLD = 1_000_000


def age(store: Store) -> None:
    """Make everything in a local store old."""
    for path in Path(store.uri).rglob("*"):
        os.utime(path, (OLD, OLD))


def test_a_sound_store_has_no_damage(any_store: Store) -> None:
    assert verify(any_store).damages == []
    any_store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    any_store.commit(key_of("b"), chunk_of(2), start=4, stop=8)
    any_store.register_run("01RUN", b"plan")
    any_store.append_events("01RUN", "w", [Event(time=1.0, kind="note", run="01RUN")])
    any_store.put_run_file("01RUN", "report.html", b"<html>")
    any_store.put_cached("probe", "x", 1)
    any_store.backend.write_folder(layout.new_object_path(key_of("orphan")), {"zarr.json": (b"",)})
    with lease(any_store, "plan"):
        report = verify(any_store)
    assert (report.damages, report.checked) == ([], 2)
    assert report.bytes == 2 * chunk_of(1).nbytes


def test_verify_says_what_is_damaged(store: Store) -> None:
    records = {
        name: store.commit(key_of(name), chunk_of(1), start=0, stop=4)
        for name in ("flipped", "lost", "cut", "scribbled", "sound")
    }
    root = Path(store.uri)
    flipped = root / records["flipped"].object / "c.0.0.0.0"
    data = bytearray(flipped.read_bytes())
    data[100] ^= 1
    flipped.write_bytes(data)
    (root / records["cut"].object / "c.0.0.0.0").unlink()
    store.backend.delete_folder(records["lost"].object)
    store.backend.write(layout.record_path(key_of("scribbled")), b"{")
    store.backend.write("records/ab/notes.txt", b"?")
    store.backend.write("data/ab/notes/x.txt", b"?")
    store.register_run("01RUN", b"plan")
    store.backend.write(layout.plan_path("01RUN"), b"plum")
    store.append_events("01RUN", "w", [Event(time=1.0, kind="note", run="01RUN")])
    (name,) = store.backend.names(layout.events_folder("01RUN"))
    store.backend.write(f"{layout.events_folder('01RUN')}/{name}", b"{}\n")
    store.backend.write(layout.STORE_FILE, b"")

    report = verify(store)
    assert report.checked == 5
    found = sorted((damage.kind, damage.key or damage.path) for damage in report.damages)
    assert found == sorted(
        [
            ("object", key_of("flipped")),
            ("missing object", key_of("lost")),
            ("missing object", key_of("cut")),
            ("record", key_of("scribbled")),
            ("stray", "records/ab/notes.txt"),
            ("stray", "data/ab/notes"),
            ("run", layout.plan_path("01RUN")),
            ("run", f"{layout.events_folder('01RUN')}/{name}"),
            ("store", layout.STORE_FILE),
        ]
    )


def test_a_record_under_the_name_of_another_is_damage(store: Store) -> None:
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    data = store.backend.read(layout.record_path(key_of("a")))
    store.backend.create(layout.record_path(key_of("b")), data)
    (damage,) = verify(store).damages
    assert (damage.kind, damage.key) == ("record", key_of("b"))


def test_repair_is_delete_then_compute_again(store: Store) -> None:
    record = store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.backend.write(f"{record.object}/c.0.0.0.0", b"")
    (damage,) = verify(store).damages
    assert damage.key is not None
    store.delete(damage.key)
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    assert verify(store).damages == []


def test_prune_keeps_what_is_needed_or_young(store: Store) -> None:
    store.commit(key_of("kept"), chunk_of(1), start=0, stop=4)
    store.commit(key_of("old"), chunk_of(2), start=0, stop=4)
    orphan = layout.new_object_path(key_of("kept"))
    store.backend.write_folder(orphan, {"zarr.json": (b"123",)})
    store.backend.write_folder(layout.new_object_path(key_of("x")), {"c.0": (b"12",)})
    age(store)
    store.commit(key_of("young"), chunk_of(3), start=0, stop=4)
    young_orphan = layout.new_object_path(key_of("y"))
    store.backend.write_folder(young_orphan, {"zarr.json": (b"123",)})

    planned = prune(store, keep=[key_of("kept")], dry_run=True)
    assert store.find(key_of("old")) is not None
    report = prune(store, keep=[key_of("kept")])
    assert report == planned
    assert sorted(item.kind for item in report.removed) == ["chunk", "orphan", "orphan"]
    assert Removed("orphan", orphan, 3) in report.removed
    assert report.bytes > chunk_of(2).nbytes

    assert store.present([key_of("kept"), key_of("old"), key_of("young")]) == {
        key_of("kept"),
        key_of("young"),
    }
    np.testing.assert_array_equal(store.read(key_of("kept")), chunk_of(1))
    assert store.backend.names(young_orphan) == ["zarr.json"]
    assert verify(store).damages == []
    assert prune(store, keep=[key_of("kept")]).removed == []


def test_prune_takes_what_killed_runs_left(store: Store) -> None:
    temp = Path(store.uri) / layout.TEMP
    (temp / "0123").write_bytes(b"abc")
    (temp / "4567").mkdir()
    (temp / "4567" / "zarr.json").write_bytes(b"abcd")
    assert prune(store, keep=[]).removed == []
    age(store)
    store.backend.write("leases/plan.json", b"{}", durable=False)
    os.utime(Path(store.uri) / "leases/plan.json", (OLD, OLD))
    with lease(store, "living"):
        report = prune(store, keep=[])
        assert store.backend.names(layout.LEASES) == ["living.json"]
    assert sorted(item.path for item in report.removed) == [
        "leases/plan.json",
        "tmp/0123",
        "tmp/4567",
    ]
    assert report.bytes == 7
    assert list(temp.iterdir()) == []


def test_prune_takes_old_damaged_records_that_nobody_needs(store: Store) -> None:
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.backend.write(layout.record_path(key_of("a")), b"{")
    age(store)
    assert sorted(item.kind for item in prune(store, keep=[]).removed) == ["chunk", "orphan"]
    assert verify(store).damages == []


def test_prune_killed_anywhere_leaves_a_sound_store(tmp_path: Path) -> None:
    for k in range(12):
        store = Store.open(str(tmp_path / str(k)))
        store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
        store.commit(key_of("b"), chunk_of(1), start=0, stop=4)
        age(store)
        try:
            prune(Store(KillAfter(LocalBackend(store.uri), k)), keep=[key_of("b")])
        except Killed:
            assert verify(store).damages == []
            prune(store, keep=[key_of("b")])
        assert len(list(store.backend.walk(layout.DATA))) == 2
        np.testing.assert_array_equal(store.read(key_of("b")), chunk_of(1))


def test_prune_works_on_object_stores(s3_uri: str) -> None:
    store = Store.open(s3_uri)
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.commit(key_of("b"), chunk_of(1), start=0, stop=4)
    assert prune(store, keep=[]).removed == []
    prune(store, keep=[key_of("a")], min_age_seconds=-60)
    assert store.present([key_of("a"), key_of("b")]) == {key_of("a")}
    assert len(list(store.backend.walk(layout.DATA))) == 2


def test_usage_counts_files_and_bytes_by_kind(any_store: Store) -> None:
    record = any_store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    any_store.put_cached("probe", "x", 1)
    found = usage(any_store)
    assert set(found) == set(layout.FOLDERS)
    assert (found["records"].files, found["data"].files, found["cache"].files) == (1, 2, 1)
    sizes = [info.size for info in any_store.backend.walk(record.object)]
    assert found["data"].bytes == sum(sizes) > chunk_of(1).nbytes


@pytest.mark.parametrize("operation", ["verify", "usage"])
def test_looking_changes_nothing(store: Store, operation: str) -> None:
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    before = sorted(info for folder in layout.FOLDERS for info in map(str, walk(store, folder)))
    verify(store) if operation == "verify" else usage(store)
    after = sorted(info for folder in layout.FOLDERS for info in map(str, walk(store, folder)))
    assert before == after


def walk(store: Store, folder: str) -> list[object]:
    return list(store.backend.walk(folder))
