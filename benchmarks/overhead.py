"""What the flow costs beside a bare script that makes the same model calls, without Prefect or Zarr.

    python benchmarks/overhead.py [--frames 400] [--steps 4] [--json]

Both run in this process, one after the other, on the embedded models. Start-up is reported apart: the
server, and a first flow over a clip of 16 frames, as the bare script warms its models up before its time is
taken. The bare script keeps every array in memory; encoding and joining the video are part of both.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from latentloom.flows import engine
from latentloom.flows.compile import compile_plan
from latentloom.flows.example import SCENE
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.sprites.render import FPS, render
from latentloom.storage.store import Store
from latentloom.tasks import publish
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.group import STAGES
from latentloom.tasks.loading import PlanModels, use_profile

SHORT_FRAMES = 16


class Memory:
    """Chunks in a dictionary: what a bare script would do."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}

    def read(self, key: str) -> Any:
        """Return a chunk."""
        return self.arrays[key]


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), options.frames, options.steps)
    for name, value in rows.items():
        print(f"{name:24} {value:10.4f}")
    if options.json:
        print(json.dumps(rows))


def measure(folder: Path, num_frames: int, num_steps: int) -> dict[str, float]:
    """Run both, and return seconds and their ratio."""
    clip = folder / "clip.mp4"
    write_video(clip, render(SCENE, num_frames), Fraction(FPS))
    short = folder / "short.mp4"
    write_video(short, render(SCENE, SHORT_FRAMES), Fraction(FPS))
    store = Store.open(str(folder / "store"))
    plan = make_plan(store, clip, folder / "flow.mp4", num_steps)
    short_plan = make_plan(store, short, folder / "short-flow.mp4", num_steps)
    bare_seconds = in_a_thread(partial(time_bare, plan, folder / "bare.mp4"))

    begun = time.perf_counter()
    engine.quiet_environment()
    with engine.session() as runner:
        run_flow(store, short_plan, runner)
        startup_seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        run_flow(store, plan, runner)
        flow_seconds = time.perf_counter() - begun
    assert (folder / "flow.mp4").read_bytes() == (folder / "bare.mp4").read_bytes()
    return {
        "frames": num_frames,
        "bare_seconds": bare_seconds,
        "flow_seconds": flow_seconds,
        "startup_seconds": startup_seconds,
        "fsync_seconds": fsync_seconds(folder),
        "ratio": flow_seconds / bare_seconds,
    }


def run_flow(store: Store, plan: Plan, runner: Any) -> None:
    """Register a plan and run it as a Prefect flow."""
    from latentloom.flows import edit

    state = register(store, plan)
    edit.edit_video.with_options(task_runner=runner)(store=store.uri, run=state.run)


def make_plan(store: Store, clip: Path, output: Path, num_steps: int) -> Plan:
    """Compile an FLDM recipe on the embedded models."""
    recipe = validate_recipe(
        {
            "version": 1,
            "source": {"uri": str(clip)},
            "models": {
                "image": {"path": "embedded:sprites/image"},
                "video": {"path": "embedded:sprites/video"},
                "control": {"path": "embedded:sprites/control"},
            },
            "prompts": {"source": "a red filled star", "target": "a blue filled star"},
            "stages": [
                {"op": "encode"},
                {"op": "invert", "num_inference_steps": num_steps},
                {
                    "op": "fuse",
                    "guidance_scale": 3.0,
                    "sources": [{"model": "image", "controlnet": {}}, {"model": "video"}],
                },
                {"op": "decode"},
            ],
            "output": {"uri": str(output)},
        }
    )
    return compile_plan(recipe, resolve(recipe, store))


def in_a_thread(work: Callable[[], float]) -> float:
    """Call a function in a thread that ends with it, as the flow's tasks run in one of Prefect's.

    OpenMP keeps a team of threads for every thread that has computed; while two teams live, more threads
    than cores, it lets none of them spin, and small models run at half their speed.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result()


def time_bare(plan: Plan, output: Path) -> float:
    """Return the seconds that the bare script takes once the models are loaded."""
    warm_up(plan)
    begun = time.perf_counter()
    run_bare(plan, output)
    return time.perf_counter() - begun


def warm_up(plan: Plan) -> None:
    """Load the models, so that neither side pays for it."""
    use_profile(plan)
    memory = Memory()
    for stage in plan.stages[1:-1]:
        compute(memory, plan, stage.name, 0, PlanModels(plan))


def run_bare(plan: Plan, output: Path) -> None:
    """Make every chunk in order, in memory, and write the video."""
    use_profile(plan)
    memory, models = Memory(), PlanModels(plan)
    for stage in plan.stages:
        for index in range(len(stage.chunks)):
            compute(memory, plan, stage.name, index, models)
    publish.join(cast(Store, memory), plan, output)


def compute(memory: Memory, plan: Plan, name: str, index: int, models: PlanModels) -> None:
    """Make one chunk, and what it reads where that is missing."""
    stage = plan.by_name[name]
    for upstream, read in zip(stage.inputs, stage.chunks[index].reads, strict=True):
        for other in read:
            if plan.by_name[upstream].chunks[other].key not in memory.arrays:
                compute(memory, plan, upstream, other, models)
    bare = stage.model_copy(update={"checkpoints": ()})
    chunk = OpenChunk(cast(Store, memory), plan, bare, stage.chunks[index], models)
    memory.arrays[stage.chunks[index].key] = STAGES[stage.op](chunk)


def fsync_seconds(folder: Path, times: int = 50) -> float:
    """Return the median time that the disk takes to sync 4 KiB."""
    found = []
    for index in range(times):
        with (folder / f"sync-{index}").open("wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            begun = time.perf_counter()
            os.fsync(file.fileno())
            found.append(time.perf_counter() - begun)
    return float(np.median(found))


if __name__ == "__main__":
    main()
