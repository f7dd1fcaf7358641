"""Deployments on a real server with a real worker: what an operator schedules, retries and limits."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from latentloom.flows.runs import read_state
from latentloom.media.probe import probe
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
from tests.lasting import FINAL, POOL, Service, serving, spans, wait_for
from tests.runs import make_clip, make_recipe_data
from tests.webhook import SECRET, Webhook, listening
from tests.yaml import write_yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def webhook() -> Iterator[Webhook]:
    with listening() as webhook:
        yield webhook


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, webhook: Webhook) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service")) as service:
        service.start_worker(LATENTLOOM_NOTIFY=f"http://{webhook.place}")
        service.run("prefect", "--no-prompt", "deploy", "--all")
        yield service


class Desk:
    """A folder with a clip, a recipe and a store."""

    def __init__(self, folder: Path, num_frames: int = 24) -> None:
        self.folder = folder
        make_clip(folder / "clip.mp4", num_frames)
        write_yaml(
            folder / "recipe.yaml", make_recipe_data(Path("clip.mp4"), Path("out/{stem}.mp4"))
        )
        self.output = folder / "out" / "clip.mp4"

    @property
    def store(self) -> Store:
        return Store.open(str(self.folder / ".latentloom"), create=False)

    def records(self) -> dict[str, bytes]:
        found = (self.folder / ".latentloom" / "records").glob("*/*.json")
        return {path.name: path.read_bytes() for path in found}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_retry_of_a_crashed_run_adopts_its_plan_and_resumes(service: Service, desk: Desk) -> None:
    make_clip(desk.folder / "clip.mp4", 160)
    made = service.submit("recipe.yaml", folder=desk.folder)
    wait_for(lambda: len(desk.records()) >= 4, "records")
    os.kill(read_state(desk.store, made["run"]).pid, signal.SIGKILL)
    before = desk.records()
    service.wait_for_state(made["flow_run"], "CRASHED")
    assert not desk.output.exists()

    service.retry(made["flow_run"])
    service.wait_for_state(made["flow_run"], "COMPLETED", "FAILED")
    assert probe(desk.output).num_frames == 160
    assert desk.store.runs() == [made["run"]]
    state = read_state(desk.store, made["run"])
    assert state.state == "finished"
    assert sum(stage.reused for stage in state.stages) >= len(before)
    after = desk.records()
    assert {name: after[name] for name in before} == before


def test_retry_of_a_failed_run_adopts_its_plan(
    service: Service, desk: Desk, webhook: Webhook
) -> None:
    made = service.submit("recipe.yaml", folder=desk.folder)
    (desk.folder / "out").write_text("in the way")
    assert service.wait_for_state(made["flow_run"])["state_type"] == "FAILED"
    assert not desk.records()

    (desk.folder / "out").unlink()
    service.retry(made["flow_run"])
    ended = service.wait_for_state(made["flow_run"], "COMPLETED")
    assert ended["run_count"] == 2
    assert probe(desk.output).num_frames == 24
    assert desk.store.runs() == [made["run"]]
    told = [message["state"] for message in webhook.messages if message["name"] == made["run"]]
    assert told == ["failed", "finished"]
    database = service.folder / "prefect" / "prefect.db"
    assert SECRET.encode() not in database.read_bytes()


def test_pool_with_one_slot_runs_one_flow_at_a_time(service: Service, desk: Desk) -> None:
    service.run("prefect", "work-pool", "set-concurrency-limit", POOL, "1")
    try:
        made = [
            service.submit(
                "recipe.yaml", f"seed={seed}", f"output.uri={seed}.mp4", folder=desk.folder
            )
            for seed in (1, 2)
        ]
        ended = [service.wait_for_state(run["flow_run"]) for run in made]
    finally:
        service.run("prefect", "work-pool", "clear-concurrency-limit", POOL)
    assert [run["state_type"] for run in ended] == ["COMPLETED", "COMPLETED"]
    assert {run["work_queue_name"] for run in ended} == {"default"}
    (_, first_end), (second_begin, _) = spans(ended)
    assert first_end <= second_begin


def test_task_groups_wait_for_the_slot_of_their_device(service: Service, desk: Desk) -> None:
    name = f"latentloom-{socket.gethostname()}-cpu"
    service.run("prefect", "gcl", "create", name, "--limit", "1")
    taken = {"names": [name], "slots": 1, "mode": "concurrency", "lease_duration": 600}
    held = service.post("v2/concurrency_limits/increment-with-lease", taken)
    try:
        made = service.submit("recipe.yaml", folder=desk.folder)

        def task_is_running() -> bool:
            query = {
                "flow_runs": {"id": {"any_": [made["flow_run"]]}},
                "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
            }
            return bool(service.post("task_runs/filter", query))

        wait_for(task_is_running, "running task")
        time.sleep(3)  # long enough for a chunk, if nothing held it back
        assert not desk.records()
        lease_id = {"lease_id": held["lease_id"]}
        service.post("v2/concurrency_limits/decrement-with-lease", lease_id)
        service.wait_for_state(made["flow_run"], "COMPLETED")
    finally:
        service.run("prefect", "--no-prompt", "gcl", "delete", name)
    assert probe(desk.output).num_frames == 24


def test_interval_fires_by_itself_twice_without_overlap(service: Service, desk: Desk) -> None:
    batch = {
        "version": 1,
        "name": "night",
        "recipe": "recipe.yaml",
        "inputs": {"include": ["in/*.mp4"]},
        "output": "done/{relpath}.mp4",
    }
    write_yaml(desk.folder / "batch.yaml", batch)
    (desk.folder / "in").mkdir()
    shutil.copyfile(desk.folder / "clip.mp4", desk.folder / "in" / "one.mp4")
    Store.open(str(desk.folder / ".latentloom"))

    def ended() -> list[dict[str, object]]:
        runs = service.flow_runs(deployment="night")
        return [run for run in runs if run["state_type"] in FINAL]

    # On a busy machine ticks come faster than they end.
    service.run("prefect", "work-pool", "set-concurrency-limit", POOL, "2")
    # Somebody works on the batch: ticks come, and do nothing.
    with lease(desk.store, "batch-night"):
        service.run("latentloom", "deploy", "batch.yaml", "--interval", "20", folder=desk.folder)
        assert wait_for(ended, "tick")
        assert not (desk.folder / "done").exists()
    wait_for((desk.folder / "done" / "one.mp4").exists, "video of a tick")
    make_clip(desk.folder / "in" / "two.mp4", 8)
    wait_for((desk.folder / "done" / "two.mp4").exists, "video of a later tick")
    wait_for(lambda: len(service.flow_runs(flow="edit-video")) >= 2, "two videos")
    service.run("prefect", "deployment", "schedule", "clear", "-y", "edit-archive/night")
    service.run("prefect", "work-pool", "clear-concurrency-limit", POOL)

    ticks = wait_for(lambda: [run for run in ended() if run["start_time"]], "ticks")
    assert len(ticks) >= 3
    assert {run["state_type"] for run in ticks} == {"COMPLETED"}
    assert all(run["auto_scheduled"] for run in ticks)
    videos = [run for run in service.flow_runs(flow="edit-video") if "batch:night" in run["tags"]]
    names = sorted(run["name"] for run in videos)
    assert names == ["one.mp4 / small", "two.mp4 / small"]
    assert all(a[1] <= b[0] for a, b in pairwise(spans(videos)))
