"""What a plan warns of is told by whatever runs it, and by what tells of runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from latentloom.cli.main import cli
from latentloom.flows import edit
from latentloom.flows.archive import describe_batch, write_record
from latentloom.flows.runs import register
from latentloom.flows.server import EMBEDDED
from latentloom.schemas.batch import VideoRecord
from latentloom.schemas.run import RunState
from latentloom.storage.store import Store
from tests.runs import compile_small, make_clip

WARNING = "100% of the [end] is not read"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def run(store: Store, tmp_path: Path) -> RunState:
    plan = compile_small(store, make_clip(tmp_path / "clip.mp4", 2), None)
    return register(store, plan.model_copy(update={"warnings": (WARNING,)}))


def test_flow_run_logs_what_its_plan_warns_of_once(
    store: Store, run: RunState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def do_nothing(*_: object, **__: object) -> RunState:
        return run

    monkeypatch.setenv(EMBEDDED, "1")
    monkeypatch.setattr(edit, "execute", do_nothing)
    monkeypatch.setattr(edit, "get_run_logger", lambda: logging.getLogger("flow run"))
    edit.run_in_flow(store.uri, run.run)
    told = [record for record in caplog.records if record.name == "flow run"]
    assert [(record.levelname, record.getMessage()) for record in told] == [("WARNING", WARNING)]


@pytest.mark.parametrize("command", ["status", "report"])
def test_warnings_of_a_run_are_told_again(store: Store, run: RunState, command: str) -> None:
    shown = CliRunner().invoke(cli, [command, run.run, "--store", store.uri])
    assert f"warning: {WARNING}" in shown.stdout.splitlines()


def test_warnings_of_a_batch_are_counted(store: Store) -> None:
    video: dict[str, Any] = {"state": "done", "output": "out.mp4", "warnings": [WARNING]}
    for uri in ("one.mp4", "two.mp4"):
        write_record(store, "night", VideoRecord(uri=uri, **video))
    assert describe_batch(store, "night")["warnings"] == {WARNING: 2}
    shown = CliRunner().invoke(cli, ["status", "night", "--store", store.uri])
    assert f"warning (2 of its videos): {WARNING}" in shown.stdout.splitlines()
