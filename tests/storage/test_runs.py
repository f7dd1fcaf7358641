from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from latentloom.errors import StoreError, UsageError
from latentloom.schemas.event import Event
from latentloom.storage import layout
from latentloom.storage.store import Store

RUN = "01JD0000000000000000000000"


def note(time: float, **fields: object) -> Event:
    return Event.model_validate({"time": time, "kind": "note", "run": RUN, **fields})


def test_a_run_is_registered_with_its_plan(any_store: Store) -> None:
    assert any_store.runs() == []
    any_store.register_run("01B", b"plan B")
    any_store.register_run("01A", b"plan A")
    assert any_store.runs() == ["01A", "01B"]
    assert any_store.read_plan("01A") == b"plan A"


def test_a_run_cannot_be_registered_twice_with_different_plans(any_store: Store) -> None:
    any_store.register_run(RUN, b"plan")
    any_store.register_run(RUN, b"plan")
    with pytest.raises(StoreError, match="another plan"):
        any_store.register_run(RUN, b"other")
    assert any_store.read_plan(RUN) == b"plan"


def test_a_forgotten_run_leaves_nothing(any_store: Store) -> None:
    any_store.register_run(RUN, b"plan")
    any_store.put_run_file(RUN, "state.json", b"{}")
    any_store.append_events(RUN, "host-1", [note(1.0)])
    any_store.forget_run(RUN)
    assert any_store.runs() == []
    assert any_store.backend.names(layout.RUNS) == []
    assert list(any_store.events(RUN)) == []
    for action in (any_store.read_plan, any_store.forget_run):
        with pytest.raises(UsageError, match="latentloom status"):
            action(RUN)


def test_a_changed_plan_is_found(store: Store) -> None:
    store.register_run(RUN, b'{"alpha": 0.7}')
    store.backend.write(layout.plan_path(RUN), b'{"alpha": 0.6}')
    with pytest.raises(StoreError, match="digest"):
        store.read_plan(RUN)


def test_the_plan_can_be_checked_by_sha256sum(store: Store) -> None:
    store.register_run(RUN, b"plan")
    line = (Path(store.uri) / layout.plan_digest_path(RUN)).read_text()
    assert line == f"{hashlib.sha256(b'plan').hexdigest()}  plan.json\n"


def test_run_files_are_overwritten(any_store: Store) -> None:
    assert any_store.read_run_file(RUN, "state.json") is None
    any_store.put_run_file(RUN, "state.json", b"1")
    any_store.put_run_file(RUN, "state.json", b"2")
    assert any_store.read_run_file(RUN, "state.json") == b"2"
    assert any_store.runs() == []


@pytest.mark.parametrize("name", ["plan.json", "plan.sha256", "events", "../x", "", ".hidden"])
def test_a_run_file_needs_a_name_of_its_own(store: Store, name: str) -> None:
    with pytest.raises(StoreError):
        store.put_run_file(RUN, name, b"")


def test_events_of_many_writers_and_flushes_come_in_order(any_store: Store) -> None:
    any_store.append_events(RUN, "host/2", [note(5.0), note(6.0, seconds=1.5)])
    any_store.append_events(RUN, "host/1", [note(2.0, key="ab", index=3), note(7.0)])
    any_store.append_events(RUN, "host/1", [])
    any_store.append_events(RUN, "host/1", [note(1.0, detail={"peak": 3})])
    found = list(any_store.events(RUN))
    assert [event.time for event in found] == [1.0, 2.0, 5.0, 6.0, 7.0]
    assert found[0] == note(1.0, detail={"peak": 3})
    assert found[1] == note(2.0, key="ab", index=3)
    files = any_store.event_files(RUN)
    assert [event.time for event in any_store.read_event_file(RUN, files[0])] == [5.0, 6.0]
    assert len(files) == 3


@pytest.mark.parametrize("change", [(b"1.5", b"1.6"), (b"note", b"mote"), (b"}\n", b"\n")])
def test_a_damaged_event_file_is_an_error(store: Store, change: tuple[bytes, bytes]) -> None:
    store.append_events(RUN, "w", [note(1.5)])
    (name,) = store.backend.names(layout.events_folder(RUN))
    path = f"{layout.events_folder(RUN)}/{name}"
    store.backend.write(path, store.backend.read(path).replace(*change))
    with pytest.raises(StoreError, match="history only"):
        store.events(RUN)
