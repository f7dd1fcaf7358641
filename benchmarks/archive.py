"""What an archive costs beside its models: scan, scheduler, database of the server, memory of the parent.

    python -m benchmarks.archive [--files 10000] [--videos 300] [--parallel 1] [--json]

So many files are scanned twice: once as if all were new, once with a record of each. Then some of them are
edited on stand-in models, once plainly in this process and once as a batch on a Prefect server with SQLite.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from latentloom.flows.archive import Scan, Template, output_version, scan, write_record
from latentloom.flows.compile import compile_plan
from latentloom.flows.example import SCENE
from latentloom.flows.execute import execute
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.sprites.render import render
from latentloom.storage.store import Store

NUM_FRAMES, SIZE, RATE = 8, 32, Fraction(8)
NUM_PLAIN = 20
"""Videos that are also edited plainly, for comparison."""
WARM_VIDEOS = 10
"""Videos after which the parent's memory counts as its own."""
START_SECONDS = 120.0
RECIPE: dict[str, Any] = {
    "version": 1,
    "source": {"uri": "clip.mp4"},
    "models": {
        "image": {"path": "embedded:standin/image"},
        "video": {"path": "embedded:standin/video"},
    },
    "prompts": {"target": "a"},
    "chunks": {"frames": 8},
    "windows": {"size": 8, "overlap": 2},
    "numerics": {"threads": 1, "device": "cpu"},
    "stages": [
        {"op": "encode"},
        {"op": "invert", "num_inference_steps": 1},
        {"op": "fuse", "tau": 0, "sources": [{"model": "image"}, {"model": "video"}]},
        {"op": "decode"},
    ],
    "output": {"uri": "edited.mp4", "preset": "ultrafast"},
}


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-") as folder:
        rows = measure(Path(folder), options.files, options.videos, options.parallel)
    for name, value in rows.items():
        print(f"{name:40} {value:14,.3f}")
    if options.json:
        print(json.dumps(rows))


def measure(folder: Path, num_files: int, num_videos: int, parallel: int) -> dict[str, float]:
    """Scan an archive, edit a part of it, and return seconds and bytes."""
    clips = make_archive(folder, num_files, num_videos)
    write(folder / "recipe.yaml", RECIPE)
    batch = write_batch(folder, "all", "in/**/*.mp4", parallel)
    store = Store.open(str(folder / "store"))
    first_seconds, scanned = timed_scan(store, batch)
    finish(store, scanned)
    again_seconds, scanned = timed_scan(store, batch)
    assert not scanned.todo
    plain_seconds = time_plain(folder, scanned.template, clips[:NUM_PLAIN])
    return {
        "files": num_files,
        "scan_of_new_files_seconds": first_seconds,
        "scan_of_done_files_seconds": again_seconds,
        "videos": num_videos,
        **run_batch(folder, num_videos, parallel, plain_seconds),
    }


def make_archive(folder: Path, num_files: int, num_videos: int) -> list[Path]:
    """Make clips to edit, and many more files of their kind in nested folders; returns the clips."""
    clips = []
    for index in range(num_videos):
        path = folder / "in" / "clips" / f"{index // 100:02}" / f"clip-{index:05}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, render(SCENE, NUM_FRAMES, SIZE, start=NUM_FRAMES * index), RATE)
        clips.append(path)
    for index in range(num_files - num_videos):
        path = folder / "in" / "rest" / f"{index // 100:03}" / f"clip-{index:05}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(clips[0], path)
    return clips


def write_batch(folder: Path, name: str, include: str, parallel: int) -> Path:
    """Write a batch file."""
    batch = {
        "version": 1,
        "name": name,
        "recipe": "recipe.yaml",
        "inputs": {"include": [include]},
        "output": f"{name}/{{relpath}}.mp4",
        "max_parallel": parallel,
    }
    write(folder / f"{name}.yaml", batch)
    return folder / f"{name}.yaml"


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write YAML."""
    with path.open("w") as file:
        YAML(typ="rt", pure=True).dump(document, file)


def timed_scan(store: Store, batch: Path) -> tuple[float, Scan]:
    """Scan, and say how long it took."""
    begun = time.perf_counter()
    found = scan(store, batch, roots=[batch.parent])
    return time.perf_counter() - begun, found


def finish(store: Store, scanned: Scan) -> None:
    """Leave what a scan leaves that has edited every video."""
    for video in scanned.todo:
        output = Path(video.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(b"edited")
        done = {"state": "done", "output_version": output_version(video.output)}
        write_record(store, scanned.batch.name, video.record.model_copy(update=done))


def time_plain(folder: Path, template: Template, clips: list[Path]) -> float:
    """Return the seconds that a video takes in this process without Prefect, once models are loaded."""
    store = Store.open(str(folder / "plain"))
    ended = []
    for clip in clips:
        begun = time.perf_counter()
        output = folder / "plain-out" / clip.name
        recipe = template.recipe(str(clip), str(output), ())
        plan = compile_plan(recipe, resolve(recipe, store))
        execute(store, plan, register(store, plan))
        ended.append(time.perf_counter() - begun)
    # The first one loads what the others use.
    return sum(ended[1:]) / (len(ended) - 1)


def run_batch(
    folder: Path, num_videos: int, parallel: int, plain_seconds: float
) -> dict[str, float]:
    """Edit the clips as a batch on a server, and watch the parent and the database."""
    batch = write_batch(folder, "clips", "in/clips/**/*.mp4", parallel)
    home = folder / "home"
    with server(home) as environment:
        before = database_bytes(home)
        command = [sys.executable, "-m", "latentloom", "batch", str(batch), "--json"]
        process = subprocess.Popen(
            [*command, "--store", str(folder / "store")],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert process.stdout is not None
        parent, held, times = psutil.Process(process.pid), [], []
        for line in process.stderr:
            if f"/{num_videos} " in line:
                held.append(parent.memory_info().rss)
                times.append(time.perf_counter())
        facts = json.loads(process.stdout.read().splitlines()[-1])
        if process.wait() != 0 or facts["edited"] != num_videos:
            raise SystemExit(f"the batch failed: {facts}")
        after = database_bytes(home)
    warm = min(WARM_VIDEOS, num_videos // 2)
    seconds = (times[-1] - times[warm]) / (len(times) - 1 - warm)
    return {
        "seconds_per_video": seconds,
        "plain_seconds_per_video": plain_seconds,
        "overhead_seconds_per_video": seconds * parallel - plain_seconds,
        "database_bytes_per_video": (after - before) / num_videos,
        "parent_bytes_warm": held[warm],
        "parent_bytes_at_end": held[-1],
        "parent_growth_bytes_per_video": (held[-1] - held[warm]) / (len(held) - 1 - warm),
    }


@contextmanager
def server(home: Path) -> Iterator[dict[str, str]]:
    """Run a Prefect server on SQLite; yields the environment of its clients."""
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1"], env=environment, stdout=log, stderr=log
        )
    try:
        await_health(environment["PREFECT_API_URL"])
        yield environment
    finally:
        process.terminate()
        process.wait(timeout=60)


def await_health(url: str) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def database_bytes(home: Path) -> int:
    """Return what the database takes, its log of writes included."""
    return sum(path.stat().st_size for path in home.glob("prefect.db*"))


if __name__ == "__main__":
    main()
