"""An archive as a service: PostgreSQL, Prefect, S3, two workers of a pool, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from latentloom.flows.archive import read_records
from latentloom.flows.example import SCENE
from latentloom.flows.sharing import leading
from latentloom.media.probe import probe
from latentloom.media.write import write_video
from latentloom.schemas.batch import VideoRecord
from latentloom.sprites.render import render
from latentloom.storage.leases import holder
from latentloom.storage.store import Store
from tests.integration.services import (
    LOOPBACK,
    Process,
    Server,
    postgres,
    postgres_folder,
)
from tests.lasting import wait_for
from tests.runs import compile_small, make_recipe_data, run_here
from tests.yaml import write_yaml

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]

BUCKET = "archive"
BLOCK = "archive-credentials"
SECRETS = {"key": "testing", "secret": "testing"}
FOLDERS = ("", "2024/", "2024/spring/", "2025/")
NUM_SOUND, NUM_FAILING = 26, 4
# Every worker process of the crew runs this before anything else.
SITE = """\
import sys
if "spawn_main" in " ".join(sys.orig_argv):
    import ctypes, functools
    from latentloom.flows import crew
    edit = crew.edit_video
    @functools.wraps(edit)
    def edit_or_die(job):
        if "segfault" in job.source:
            ctypes.string_at(0)
        return edit(job)
    crew.edit_video = edit_or_die
"""


class Service:
    """Everything an operator has running, and the archive that it is for."""

    def __init__(self, folder: Path, stack: ExitStack, programs: Path) -> None:
        self.folder, self._stack = folder, stack
        (folder / "sitecustomize.py").write_text(SITE)
        self.database = stack.enter_context(postgres(programs))
        self.server = Server(folder, self.database)
        stack.callback(self.server.kill)
        self.server.start()
        self.s3 = self._start_s3()
        self.store = f"s3://{BUCKET}/store"

    def _start_s3(self) -> Any:
        import s3fs
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
        server.start()
        self._stack.callback(server.stop)
        host, port = server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        fs = s3fs.S3FileSystem(**self.options, use_listings_cache=False)
        fs.mkdir(BUCKET)
        return fs

    @property
    def options(self) -> dict[str, Any]:
        """What opens the bucket; workers find it in a block of the server."""
        return {**SECRETS, "endpoint_url": self.endpoint}

    def call(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run a program of the environment to its end."""
        ended = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=cwd or self.folder,
            env=self.server.client_env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def prepare(self) -> None:
        """Do what an operator does once: the credentials, the pool, the deployments."""
        secrets = json.dumps({"s3": self.options})
        self.call("tests.integration.save_block", BLOCK, secrets)
        self.call("prefect", "work-pool", "create", "--type", "process", "latentloom")
        project = Path(__file__).parents[2] / "prefect.yaml"
        # No worker may depend on the folder of whoever deployed.
        desk = self.folder / "desk"
        desk.mkdir()
        deploy = ("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(project))
        self.call(*deploy, cwd=desk)
        desk.rmdir()

    def worker(self, name: str) -> Process:
        """Start a worker with one slot, as on a machine of its own."""
        arguments = ("prefect", "worker", "start", "--pool", "latentloom", "--limit", "1")
        process = Process(
            self.folder / f"{name}.log", self.server.client_env, *arguments, "--name", name
        )
        self._stack.callback(process.kill)
        return process

    def submit(self) -> str:
        """Submit the batch to two machines; returns the flow run that leads."""
        return self.call(
            *("latentloom", "submit", "batch.yaml", "--machines", "2"),
            *("--store", self.store, "--credentials", BLOCK),
        ).splitlines()[0]

    def records(self) -> dict[str, VideoRecord]:
        """Return what is known of each video, by name."""
        found = read_records(Store.open(self.store), "night").values()
        return {Path(record.uri).stem: record for record in found}

    def num_done(self) -> int:
        """Count videos that are done."""
        return sum(record.state == "done" for record in self.records().values())

    def processes(self) -> set[int]:
        """Return the flow runs' processes that have taken videos."""
        return {record.pid for record in self.records().values() if record.pid}

    def flow_runs(self) -> dict[str, str]:
        """Return the state of every flow run, as PostgreSQL has it."""
        rows = asyncio.run(self._query("SELECT id::text, state_type::text FROM flow_run"))
        return {row["id"]: row["state_type"] for row in rows}

    async def _query(self, text: str) -> list[Any]:
        import asyncpg

        connection = await asyncpg.connect(self.database.replace("+asyncpg", ""))
        try:
            rows: list[Any] = await connection.fetch(text)
            return rows
        finally:
            await connection.close()

    def run_to_end(self) -> dict[str, VideoRecord]:
        """Submit the batch, and wait until every flow run has ended."""
        leader = self.submit()
        active = {"SCHEDULED", "PENDING", "RUNNING", "CANCELLING"}
        wait_for(
            lambda: (
                self.flow_runs()[leader] not in active
                and not active & set(self.flow_runs().values())
            ),
            "end of all flow runs",
            seconds=900,
        )
        assert self.flow_runs()[leader] == "COMPLETED"
        return self.records()

    def num_chunks(self) -> int:
        """Count the records of chunks in the store."""
        return len(self.s3.find(f"{BUCKET}/store/records"))


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    programs = postgres_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; apt-get install postgresql")
    with ExitStack() as stack:
        service = Service(tmp_path, stack, programs)
        for name, value in (("ID", "key"), ("KEY", "secret")):
            part = "ACCESS_KEY_ID" if name == "ID" else "SECRET_ACCESS_KEY"
            monkeypatch.setenv(f"AWS_{part}", SECRETS[value])
        monkeypatch.setenv("AWS_ENDPOINT_URL", service.endpoint)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield service


def fill(service: Service) -> dict[str, Path]:
    """Put 30 videos on S3, three of them damaged and one that crashes its process; returns the sound ones."""
    clips = service.folder / "clips"
    clips.mkdir()
    sound = {}
    for index in range(NUM_SOUND):
        path = clips / f"clip-{index:02}.mp4"
        write_video(path, render(SCENE, 6 + index % 5, 32, start=8 * index), Fraction(8))
        sound[path.stem] = path
    whole = sound["clip-00"].read_bytes()
    others = {
        "segfault": whole,
        "text": b"no video" * 99,
        "empty": b"",
        "cut": whole[: len(whole) * 2 // 3],
    }
    for name, data in others.items():
        (clips / f"{name}.mp4").write_bytes(data)
    for index, path in enumerate(sorted(clips.iterdir())):
        service.s3.put_file(str(path), f"{BUCKET}/in/{FOLDERS[index % 4]}{path.name}")
    write_yaml(service.folder / "recipe.yaml", make_recipe_data(Path("clip.mp4"), Path("x.mp4")))
    batch = {
        "version": 1,
        "name": "night",
        "recipe": "recipe.yaml",
        "inputs": {"include": [f"s3://{BUCKET}/in/**/*.mp4"]},
        "output": "out/{relpath}.mp4",
        "max_parallel": 1,
        "retries": 1,
        "retry_delay": 1,
        "max_attempts": 1,
    }
    write_yaml(service.folder / "batch.yaml", batch)
    return sound


def expected(clip: Path, folder: Path) -> bytes:
    """Edit a clip plainly, in this process: no server, no S3, no other chunk."""
    output = folder / "plain" / clip.name
    store = Store.open(f"memory://plain-{clip.stem}")
    run_here(store, compile_small(store, clip, output))
    return output.read_bytes()


def outputs(service: Service) -> dict[str, Path]:
    """Return the published videos, by name."""
    return {path.stem: path for path in (service.folder / "out").rglob("*.mp4")}


def test_archive_survives_what_goes_wrong_around_it(service: Service) -> None:
    sound = fill(service)
    service.prepare()
    workers = [service.worker("one"), service.worker("two")]
    service.submit()
    wait_for(lambda: service.num_done() >= 4, "the first videos", seconds=600)

    service.server.kill()
    service.server.start()
    wait_for(lambda: service.num_done() >= 9, "videos after the restart", seconds=600)
    wait_for(lambda: len(service.processes()) == 2, "part of the other worker", seconds=600)

    # A machine is lost, the one whose flow run leads the scan, and another takes its place.
    leader = holder(Store.open(service.store), leading("night"))
    assert leader is not None
    next(worker for worker in workers if leader.pid in worker.pids()).kill()
    service.worker("three")
    records = service.run_to_end()

    assert len(records) == NUM_SOUND + NUM_FAILING
    failed = {name: record for name, record in records.items() if record.state != "done"}
    assert {name: record.state for name, record in failed.items()} == dict.fromkeys(
        ("segfault", "text", "empty", "cut"), "quarantined"
    )
    assert "died of SIGSEGV" in str(failed["segfault"].error)
    assert "cannot be opened as a video" in str(failed["text"].error)
    assert "is empty" in str(failed["empty"].error)
    assert "is damaged" in str(failed["cut"].error)

    made = outputs(service)
    assert set(made) == set(sound)
    for name, path in made.items():
        source = records[name].uri.removeprefix(f"s3://{BUCKET}/in/")
        assert path == service.folder / "out" / source
        assert probe(path).num_frames == probe(sound[name]).num_frames
        assert path.read_bytes() == expected(sound[name], service.folder), name
    assert "CRASHED" in service.flow_runs().values()

    chunks = service.num_chunks()
    assert service.run_to_end() == records
    assert service.num_chunks() == chunks

    changed = sound["clip-05"]
    write_video(changed, render(SCENE, 7, 32, start=999), Fraction(8))
    service.s3.put_file(str(changed), records["clip-05"].uri.removeprefix("s3://"))
    third = service.run_to_end()
    assert {name for name in third if third[name] != records[name]} == {"clip-05"}
    assert made["clip-05"].read_bytes() == expected(changed, service.folder)
