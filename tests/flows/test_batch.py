"""Archives as an operator meets them: real processes, a damaged file, a worker that dies of a signal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from latentloom.flows import engine
from latentloom.flows.archive import read_records, scan, write_record
from latentloom.media.probe import probe
from latentloom.schemas.batch import VideoRecord
from latentloom.storage.store import Store
from tests.runs import make_clip, make_recipe_data
from tests.webhook import listening
from tests.yaml import write_yaml

pytestmark = pytest.mark.slow

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
NAMES = ("one.mp4", "a/two.mp4", "a/b/three.mp4", "a/segfault.mp4")


class Archive:
    """A folder of videos, a batch file, and workers that a video can kill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clip = make_clip(folder / "clip.mp4", 8)
        for name in NAMES:
            (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(clip, folder / "in" / name)
        (folder / "in" / "a" / "damaged.mp4").write_bytes(b"no video" * 99)
        (folder / "sitecustomize.py").write_text(SITE)
        recipe = make_recipe_data(Path("clip.mp4"), Path("x.mp4"), encoder={"pix_fmt": "yuv420p"})
        write_yaml(folder / "recipe.yaml", recipe)
        batch = {
            "version": 1,
            "name": "night",
            "recipe": "recipe.yaml",
            "inputs": {"include": ["in/**/*.mp4"]},
            "output": "out/{relpath}.mp4",
            "max_parallel": 2,
            "retries": 0,
            "max_attempts": 2,
        }
        write_yaml(folder / "batch.yaml", batch)

    def start(self) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(self.folder), str(Path(__file__).parents[2])])
        return subprocess.Popen(
            [sys.executable, "-m", "latentloom", "batch", "batch.yaml", "--json"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, code: int) -> dict[str, Any]:
        process = self.start()
        stdout, stderr = process.communicate(timeout=280)
        assert process.returncode == code, stderr
        assert "Traceback" not in stderr
        self.stderr = stderr
        facts: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        return facts

    def records(self) -> dict[str, str]:
        return {Path(record.uri).name: record.state for record in self.all_records()}

    def all_records(self) -> Iterable[VideoRecord]:
        store = Store.open(str(self.folder / ".latentloom"), create=False)
        return read_records(store, "night").values()


def test_crash_and_damage_take_no_other_video_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(tmp_path)
    with listening() as webhook:
        monkeypatch.setenv("LATENTLOOM_NOTIFY", f"http://{webhook.place}")
        scan_three_times(archive, tmp_path)
    assert [(told["state"], len(told["failures"])) for told in webhook.messages] == [
        ("failed", 2),
        ("failed", 2),
        ("finished", 1),
    ]
    assert "SIGSEGV" in webhook.messages[0]["text"]


def scan_three_times(archive: Archive, tmp_path: Path) -> None:
    first = archive.run(code=3)
    assert (first["done"], first["failed"], first["waiting"]) == (3, 2, 0)
    errors = {Path(failed["uri"]).name: failed["error"] for failed in first["failures"]}
    assert "SIGSEGV" in errors["segfault.mp4"]
    assert "cannot be opened as a video" in errors["damaged.mp4"]
    for name in NAMES[:3]:
        assert probe(tmp_path / "out" / name).num_frames == 8

    second = archive.run(code=3)
    assert (second["edited"], second["done"]) == (0, 3)
    assert set(archive.records().values()) == {"done", "quarantined"}

    make_clip(tmp_path / "in" / "a" / "damaged.mp4", 6, dtype="uint16")
    third = archive.run(code=3)
    assert (third["edited"], third["done"], third["failed"]) == (1, 4, 0)
    (warned,) = [record for record in archive.all_records() if record.warnings]
    assert "10 bits; the output is 8 bits" in warned.warnings[0]
    (told,) = [line for line in archive.stderr.splitlines() if line.startswith("warning: ")]
    assert told == f"warning: {warned.uri}: {warned.warnings[0]}"


def test_killed_batch_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    killed = archive.start()
    while "running" not in archive_states(archive):
        time.sleep(0.1)
        assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert "running" in archive_states(archive)
    assert archive.run(code=3)["done"] == 3


def archive_states(archive: Archive) -> set[str]:
    if not (archive.folder / ".latentloom" / "store.json").exists():
        return set()
    return set(archive.records().values())


# A machine that leads a scan, has a video at work, and says so until it is killed.
LEADER = """\
import sys, time
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
store = Store.open(sys.argv[1])
with lease(store, "batch-night"), lease(store, sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_helper_finishes_what_a_dead_leader_began(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    for name in ("in/a/segfault.mp4", "in/a/damaged.mp4", "in/a/b/three.mp4"):
        (tmp_path / name).unlink()
    store = Store.open(str(tmp_path / ".latentloom"))
    begun = scan(store, tmp_path / "batch.yaml", roots=[tmp_path]).todo[0]
    write_record(store, "night", begun.record.model_copy(update={"state": "running"}))
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, store.uri, f"video-night-{begun.name}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert leader.stdout is not None
    assert leader.stdout.readline() == "held\n"
    leader.kill()
    leader.communicate()

    with engine.session():
        from latentloom.flows.batch import edit_archive

        roots = [str(tmp_path)]
        edit_archive(str(tmp_path / "batch.yaml"), store.uri, roots=roots, helps="scan 1")
    assert archive.records() == {"one.mp4": "done", "two.mp4": "done"}
    for name in ("one.mp4", "a/two.mp4"):
        assert probe(tmp_path / "out" / name).num_frames == 8
