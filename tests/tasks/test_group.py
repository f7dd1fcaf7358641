"""Chunks of a task group: read ahead, written behind, in order, and nothing left behind an error."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.errors import InterruptedRunError, ResourceError, StageError
from latentloom.schemas.plan import Plan
from latentloom.storage import layout
from latentloom.storage.local import LocalBackend
from latentloom.storage.store import Store
from latentloom.tasks import group
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.group import work_through
from tests.runs import STAGES, compile_small, make_clip
from tests.storage.faults import FailFrom

PATIENCE_SECONDS = 60  # of a barrier that would never be passed
RUN = "01RUN"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def plan(store: Store, tmp_path: Path) -> Plan:
    """Three chunks of latents."""
    return compile_small(store, make_clip(tmp_path / "clip.mp4"), None, stages=STAGES[:1])


def in_order(plan: Plan) -> Plan:
    """Return the plan with chunks that read the one before, as windows do that hand over."""
    stage = plan.by_name["encode"]
    overlapping = tuple(
        replace(chunk, stop=chunk.stop + 1) if index < 2 else chunk
        for index, chunk in enumerate(stage.chunks)
    )
    chained = stage.model_copy(update={"in_order": True, "chunks": overlapping})
    return Plan.model_validate(plan.model_dump() | {"stages": (plan.stages[0], chained)})


def test_reading_computing_and_committing_go_on_at_once(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three meet: frames of chunk 2, the model on chunk 1, the commit of chunk 0."""
    meeting = threading.Barrier(3, timeout=PATIENCE_SECONDS)
    threads: dict[str, int] = {}

    def meet(name: str) -> int:
        threads[name] = threading.get_ident()
        return meeting.wait()

    first, second, third = (chunk.start for chunk in plan.by_name["encode"].chunks)
    _before(monkeypatch, OpenChunk, "read_ahead", lambda c: c.chunk.start == third and meet("read"))
    _before(monkeypatch, Store, "commit", lambda *_, start, **__: start == first and meet("commit"))
    encode = group.STAGES["encode"]

    def compute(chunk: OpenChunk) -> Any:
        if chunk.chunk.start == second:
            meet("compute")
        return encode(chunk)

    monkeypatch.setitem(group.STAGES, "encode", compute)
    assert work_through(store, plan, RUN, "encode", range(3)) == {"encode": 3}
    assert len(set(threads.values())) == 3
    assert threads["compute"] == threading.get_ident()


def test_groups_in_threads_of_one_process_take_turns_with_the_models(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles hang hooks on a model while it runs: two groups in it at once would mix up their frames."""
    meeting, encode = threading.Barrier(2), group.STAGES["encode"]
    met: list[int] = []

    def compute(chunk: OpenChunk) -> Any:
        with suppress(threading.BrokenBarrierError):
            met.append(meeting.wait(timeout=0.5))
        meeting.reset()
        return encode(chunk)

    monkeypatch.setitem(group.STAGES, "encode", compute)
    with ThreadPoolExecutor(2) as pool:
        groups = [pool.submit(work_through, store, plan, RUN, "encode", [i]) for i in (0, 1)]
    assert [one.result() for one in groups] == [{"encode": 1}] * 2
    assert met == []


def test_one_chunk_is_behind_at_most(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, behind = group.STAGES["encode"], []

    def compute(chunk: OpenChunk) -> Any:
        chunks = plan.by_name["encode"].chunks
        index = chunks.index(chunk.chunk)
        behind.append(index - len(store.present([c.key for c in chunks[:index]])))
        return encode(chunk)

    monkeypatch.setitem(group.STAGES, "encode", compute)
    work_through(store, plan, RUN, "encode", range(3))
    assert max(behind) <= 1


def test_a_chunk_that_reads_the_one_before_waits_for_its_record(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = in_order(plan)

    def add_to_the_one_before(chunk: OpenChunk) -> Any:
        shared = chunk.handed_over()
        number = 1 if shared is None else 1 + float(shared.max())
        return np.full((chunk.chunk.num_frames, 4, 4, 4), number, np.float32)

    monkeypatch.setitem(group.STAGES, "encode", add_to_the_one_before)
    work_through(store, linked, RUN, "encode", range(3))
    chunks = linked.by_name["encode"].chunks
    assert [store.read(chunk.key).max() for chunk in chunks] == [1, 2, 3]


def test_a_chunk_that_waits_for_one_that_cannot_be_committed_is_given_up(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ResourceError("disk full")

    monkeypatch.setattr(Store, "commit", fail)
    with pytest.raises(ResourceError, match="disk full"):
        work_through(store, in_order(plan), RUN, "encode", range(3))
    assert store.backend.names(layout.LEASES) == []


def test_an_error_leaves_the_chunk_before_committed_and_no_lease(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = group.STAGES["encode"]

    def explode_at_the_second(chunk: OpenChunk) -> Any:
        if chunk.chunk.start:
            raise RuntimeError("boom")
        return encode(chunk)

    monkeypatch.setitem(group.STAGES, "encode", explode_at_the_second)
    with pytest.raises(StageError, match=r"chunk 1 .*boom"):
        work_through(store, plan, RUN, "encode", range(3))
    assert _present(store, plan) == [0]
    assert store.backend.names(layout.LEASES) == []


def test_a_full_disk_is_told_and_leaves_no_lease(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Store(FailFrom(LocalBackend(store.uri), 1))
    _before(
        monkeypatch, Store, "commit", lambda self, *_, **__: setattr(self, "backend", full.backend)
    )
    with pytest.raises(ResourceError):
        work_through(store, plan, RUN, "encode", range(3))
    monkeypatch.undo()
    again = Store.open(store.uri)
    assert again.backend.names(layout.LEASES) == []
    assert work_through(again, plan, RUN, "encode", range(3)) == {"encode": 3}


def test_a_damaged_input_is_told_after_the_chunk_before_it_is_committed(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_ahead(chunk: OpenChunk) -> None:
        if chunk.chunk.start:
            raise OSError("unreadable")

    monkeypatch.setattr(OpenChunk, "read_ahead", read_ahead)
    with pytest.raises(StageError, match=r"chunk 1 .*unreadable"):
        work_through(store, plan, RUN, "encode", range(3))
    assert _present(store, plan) == [0]
    assert store.backend.names(layout.LEASES) == []


def test_asked_to_stop_it_finishes_the_chunk_at_hand_and_begins_no_other(
    store: Store, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, stop = group.STAGES["encode"], tmp_path / "stop"
    monkeypatch.setenv("LATENTLOOM_STOP_FILE", str(stop))
    # The next chunk is ready by then, and is not begun all the same.
    ready = threading.Event()
    _before(monkeypatch, OpenChunk, "read_ahead", lambda c: ready.set() if c.chunk.start else None)

    def stop_meanwhile(chunk: OpenChunk) -> Any:
        assert ready.wait(PATIENCE_SECONDS)
        stop.touch()
        return encode(chunk)

    monkeypatch.setitem(group.STAGES, "encode", stop_meanwhile)
    with pytest.raises(InterruptedRunError, match="before chunk 1"):
        work_through(store, plan, RUN, "encode", range(3))
    assert _present(store, plan) == [0]


def _present(store: Store, plan: Plan) -> list[int]:
    chunks = plan.by_name["encode"].chunks
    return [index for index, chunk in enumerate(chunks) if store.find(chunk.key) is not None]


def _before(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, hook: Callable[..., Any]
) -> None:
    """Have a function called before a method, with its arguments."""
    method = getattr(owner, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        hook(*args, **kwargs)
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, hooked)
