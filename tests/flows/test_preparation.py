"""What a worker refuses to take part in, before its first task."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentloom.errors import StoreError, UsageError
from latentloom.flows.cluster import Preparation
from latentloom.flows.runs import register
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.runs import compile_small, make_clip

SERVER = "http://127.0.0.1:9/api"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PREFECT_API_URL", SERVER)
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def plan(tmp_path: Path, store: Store) -> Plan:
    return compile_small(store, make_clip(tmp_path / "clip.mp4", 8), tmp_path / "out.mp4")


def test_worker_that_sees_the_store_takes_part(store: Store, plan: Plan) -> None:
    run = register(store, plan).run
    assert Preparation(store.uri, run, ()).check().digest == plan.digest


def test_worker_that_does_not_see_the_store_says_so(tmp_path: Path, store: Store) -> None:
    with pytest.raises(StoreError, match="no store"):
        Preparation(str(tmp_path / "elsewhere"), "01J", ()).check()


def test_worker_of_another_torch_is_refused(store: Store, plan: Plan) -> None:
    machine = plan.facts.machine.model_copy(update={"torch": "1.0"})
    other = plan.model_copy(update={"facts": plan.facts.model_copy(update={"machine": machine})})
    run = register(store, other).run
    with pytest.raises(UsageError, match=r"the plan was made for 1\.0"):
        Preparation(store.uri, run, ()).check()


def test_worker_of_another_server_is_refused(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = Preparation(store.uri, register(store, plan).run, ())
    monkeypatch.setenv("PREFECT_API_URL", "http://10.0.0.4:4200/api")
    with pytest.raises(UsageError, match="start both with one PREFECT_API_URL"):
        ready.check()
