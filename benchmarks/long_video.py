"""Whether memory and time per frame grow with the video, beside a script that holds the video in memory.

    python benchmarks/long_video.py [--frames 500,5000] [--models standin|embedded] [--no-naive] [--json]

Stand-in models at 512 px: they cost next to nothing, so that frames, latents, plan and events are what could
grow. Each length is a command of its own. Its baseline is the least that its processes hold between the end
of the first chunk and of the last: libraries, server, decoder and plan are loaded then, and fewest frames are
on their way. Short runs are made several times, and the highest peak counts: what their threads hold at
the same time is a matter of chance, and a long run has more chances. The script needs 1 MiB a frame;
--no-naive leaves it out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import psutil
from ruamel.yaml import YAML

from benchmarks.bare import run_bare, warm_up
from latentloom.flows.calibration import TreeWatch, process_tree, resident_bytes
from latentloom.flows.compile import compile_plan
from latentloom.flows.example import SCENE
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import read_state
from latentloom.media.write import write_video
from latentloom.schemas.load import load_recipe
from latentloom.sprites.render import render
from latentloom.storage.store import Store

RATE = Fraction(25)
STEPS = 2
LEAST_FRAMES = 2000
"""Frames that are watched at least, in several runs of shorter videos."""
SAMPLE_SECONDS = 0.02
SAMPLES_BETWEEN_SEARCHES = 50
SIDES = {"standin": 512, "embedded": 64}
"""Pixels of a side: the embedded family was trained at 64."""


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", default="500,5000")
    parser.add_argument("--models", choices=sorted(SIDES), default="standin")
    parser.add_argument("--naive", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        return run_naive(options.bare)
    rows = []
    for num_frames in map(int, options.frames.split(",")):
        runs = []
        for number in range(max(1, LEAST_FRAMES // num_frames)):
            naive = options.naive and number == 0
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(Path(folder), num_frames, options.models, naive=naive))
        most = max(runs, key=lambda run: int(run["peak_rss_bytes"]))
        rows.append({**most, "naive_growth_bytes": runs[0]["naive_growth_bytes"]})
    print(
        f"{'frames':>8} {'peak MiB':>10} {'baseline':>10} {'growth':>8} {'naive':>8} {'s/frame':>9}"
        f" {'store MiB':>10}"
    )
    for row in rows:
        print(
            f"{row['frames']:8} {row['peak_rss_bytes'] / 2**20:10.0f}"
            f" {row['baseline_rss_bytes'] / 2**20:10.0f} {_growth(row) / 2**20:8.0f}"
            f" {row['naive_growth_bytes'] / 2**20:8.0f} {row['seconds_per_frame']:9.4f}"
            f" {row['store_bytes'] / 2**20:10.1f}"
        )
    first, last = rows[0], rows[-1]
    print(f"memory over the baseline, longest over shortest: {_growth(last) / _growth(first):.3f}")
    pace = last["seconds_per_frame"] / first["seconds_per_frame"]
    print(f"seconds per frame, longest over shortest: {pace:.3f}")
    stored = [row["store_bytes"] / row["frames"] for row in (first, last)]
    print(f"store bytes per frame, longest over shortest: {stored[1] / stored[0]:.3f}")
    if options.json:
        print(json.dumps({"rows": rows}))
    return None


def measure(folder: Path, num_frames: int, models: str, *, naive: bool) -> dict[str, Any]:
    """Run a recipe on a clip of so many frames, and watch the memory of its processes."""
    recipe = prepare(folder, num_frames, models)
    growth = measure_naive(recipe) if naive else 0
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "latentloom", "run", str(recipe)],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    log, first, last = [], 0.0, 0.0
    with Samples(process.pid) as samples:
        for line in process.stderr or ():
            log.append(line)
            if " chunk " in line:
                last = time.monotonic()
                first = first or last
        if process.wait() != 0:
            raise SystemExit("".join(log))
    peak, baseline = samples.most(), samples.least(first, last)
    store = Store.open(str(folder / ".latentloom"), create=False)
    state = read_state(store, store.runs()[-1])
    return {
        "frames": num_frames,
        "peak_rss_bytes": peak,
        "baseline_rss_bytes": baseline,
        "seconds_per_frame": sum(stage.seconds for stage in state.stages) / num_frames,
        "store_bytes": stored_bytes(folder / ".latentloom"),
        "command_seconds": time.monotonic() - begun,
        "naive_growth_bytes": growth,
    }


class Samples:
    """The memory of a process and its children over time.

    Taken often: a short run has fewer moments at which its threads hold most.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._taken: list[tuple[float, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def most(self) -> int:
        """Return the most bytes at any time."""
        return max(held for _, held in self._taken)

    def least(self, start: float, stop: float) -> int:
        """Return the fewest bytes between two times of the monotonic clock."""
        return min(held for at, held in self._taken if start - SAMPLE_SECONDS <= at <= stop)

    def _follow(self) -> None:
        tree: list[psutil.Process] = []
        while not self._done.wait(SAMPLE_SECONDS):
            if len(self._taken) % SAMPLES_BETWEEN_SEARCHES == 0:
                tree = process_tree(self._pid)
            self._taken.append((time.monotonic(), resident_bytes(tree)))


def prepare(folder: Path, num_frames: int, models: str) -> Path:
    """Write a clip and a recipe; returns the recipe's path."""
    # A small clip, enlarged on reading: what is measured is the run, not the making of the clip.
    write_video(folder / "clip.mp4", render(SCENE, num_frames, fps=float(RATE)), RATE)
    family = "standin" if models == "standin" else "sprites"
    side = SIDES[models]
    recipe = {
        "version": 1,
        "source": {"uri": "clip.mp4", "size": {"width": side, "height": side}},
        "models": {name: {"path": f"embedded:{family}/{name}"} for name in ("image", "video")},
        "prompts": {"target": "a"},
        "stages": [
            {"op": "encode"},
            {"op": "invert", "num_inference_steps": STEPS},
            {"op": "fuse", "sources": [{"model": "image"}, {"model": "video"}]},
            {"op": "decode"},
        ],
        "output": {"uri": "edited.mp4", "preset": "ultrafast"},
    }
    path = folder / "recipe.yaml"
    with path.open("w") as file:
        YAML(typ="rt", pure=True).dump(recipe, file)
    return path


def measure_naive(recipe: Path) -> int:
    """Return by how much a script that keeps every array grows, in a process of its own."""
    command = [sys.executable, __file__, "--bare", str(recipe)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def run_naive(path: Path) -> None:
    """Run a recipe in memory, and print by how many bytes this process grew once its models were loaded."""
    recipe = load_recipe(path)
    store = Store.open(str(path.parent / "facts"))
    plan = compile_plan(recipe, resolve(recipe, store))
    warm_up(plan)
    with TreeWatch() as watch:
        loaded = watch.take_peak()
        run_bare(plan, path.parent / "naive.mp4")
        print(watch.take_peak() - loaded)


def stored_bytes(root: Path) -> int:
    """Return the bytes of chunks and records."""
    folders = [root / "data", root / "records"]
    return sum(
        path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()
    )


def _growth(row: dict[str, Any]) -> int:
    return int(row["peak_rss_bytes"] - row["baseline_rss_bytes"])


if __name__ == "__main__":
    main()
