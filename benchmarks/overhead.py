"""What the flow costs beside a bare script that makes the same model calls, without Prefect or Zarr.

    python benchmarks/overhead.py [--frames 400] [--steps 4] [--json]

Both run in this process, one after the other, on the embedded models. Start-up is reported apart: the
server, and a first flow over a clip of 16 frames, as the bare script warms its models up before its time is
taken. The bare script keeps every array in memory; encoding and joining the video are part of both. The
flow's time is taken apart into what its thread of models did or waited for, what Prefect added, and the rest;
the lines add up to it. The disk is measured beside: a sync, and chunks committed against plain files saved.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.bare import run_bare, warm_up
from latentloom.flows import engine
from latentloom.flows.compile import compile_plan
from latentloom.flows.example import SCENE
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.schemas.base import digest
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.sprites.render import FPS, render
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through
from latentloom.tasks.publish import publish

ResultT = TypeVar("ResultT")
Seconds = dict[str, float]
Latents = NDArray[np.float32]
SHORT_FRAMES = 16


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
        if isinstance(value, dict):
            print(name)
            for part, seconds in value.items():
                print(f"    {part:24} {seconds:10.4f}")
        else:
            print(f"{name:28} {value:10.4f}")
    if options.json:
        print(json.dumps(rows))


def measure(folder: Path, num_frames: int, num_steps: int) -> dict[str, Any]:
    """Run both, and return seconds, their ratios and where they went."""
    clip = folder / "clip.mp4"
    write_video(clip, render(SCENE, num_frames), Fraction(FPS))
    short = folder / "short.mp4"
    write_video(short, render(SCENE, SHORT_FRAMES), Fraction(FPS))
    store = Store.open(str(folder / "store"))
    plan = make_plan(store, clip, folder / "flow.mp4", num_steps)
    short_plan = make_plan(store, short, folder / "short-flow.mp4", num_steps)
    bare_seconds, computing = in_a_thread(partial(time_bare, plan, folder / "bare.mp4"))
    models = sum(seconds for name, seconds in computing.items() if plan.by_name[name].models)

    begun = time.perf_counter()
    engine.quiet_environment()
    with engine.session() as session:
        run_flow(store, short_plan, session.runner)
        startup_seconds = time.perf_counter() - begun
        with stopwatches() as watches:
            begun = time.perf_counter()
            run = run_flow(store, plan, session.runner)
            flow_seconds = time.perf_counter() - begun
    assert (folder / "flow.mp4").read_bytes() == (folder / "bare.mp4").read_bytes()
    return {
        "frames": num_frames,
        "bare_seconds": bare_seconds,
        "bare_model_seconds": models,
        "flow_seconds": flow_seconds,
        "startup_seconds": startup_seconds,
        "ratio": flow_seconds / bare_seconds,
        "ratio_to_models": flow_seconds / models,
        "breakdown": take_apart(store, plan, run, flow_seconds, watches),
        "fsync_seconds": fsync_seconds(folder),
        "commit_mib_per_second": throughput(lambda i, array: _commit(store, i, array)),
        "save_mib_per_second": throughput(lambda i, array: _save(folder / f"{i}.npy", array)),
    }


def take_apart(
    store: Store, plan: Plan, run: str, total: float, watches: Seconds
) -> dict[str, float]:
    """Say where the seconds of a flow went; the parts add up to its total."""
    parts = dict.fromkeys(("model", "encode", "decode", "store", "prefect", "rest"), 0.0)
    kept = 0.0
    for event in store.events(run):
        if event.kind != "chunk_computed" or event.stage is None or event.seconds is None:
            continue
        stage, compute = plan.by_name[event.stage], float(str(event.detail["compute_seconds"]))
        parts["model" if stage.models else "encode"] += compute
        # What is not computing is waiting: for inputs, or for the commit of the chunk before.
        parts["decode" if "decode_video" in stage.inputs else "store"] += event.seconds - compute
        kept += event.seconds
    parts["encode"] += watches["publish"]
    parts["store"] += watches["work_through"] - kept
    parts["prefect"] = watches["submit"] - watches["work_through"]
    parts["rest"] = total - watches["submit"] - watches["publish"]
    return parts


@contextmanager
def stopwatches() -> Iterator[Seconds]:
    """Count the seconds of task groups, of handing them to Prefect, and of publishing."""
    from latentloom.flows import edit

    watches = defaultdict[str, float](float)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                watches[name] += time.perf_counter() - begun

        return call

    with (
        patch("latentloom.flows.edit.work_through", timed("work_through", work_through)),
        patch("latentloom.flows.edit._submit", timed("submit", edit._submit)),
        patch("latentloom.flows.execute.publish", timed("publish", publish)),
    ):
        yield watches


def run_flow(store: Store, plan: Plan, runner: Any) -> str:
    """Register a plan and run it as a Prefect flow; returns the run's id."""
    from latentloom.flows import edit

    state = register(store, plan)
    edit.edit_video.with_options(task_runner=runner)(store=store.uri, run=state.run)
    return state.run


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


def in_a_thread(work: Callable[[], ResultT]) -> ResultT:
    """Call a function in a thread that ends with it, as the flow's tasks run in one of Prefect's.

    OpenMP keeps a team of threads for every thread that has computed; while two teams live, more threads
    than cores, it lets none of them spin, and small models run at half their speed.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(work).result()


def time_bare(plan: Plan, output: Path) -> tuple[float, Seconds]:
    """Return the seconds that the bare script takes once the models are loaded, and its stages'."""
    warm_up(plan)
    begun = time.perf_counter()
    computing = run_bare(plan, output)
    return time.perf_counter() - begun, computing


def throughput(write: Callable[[int, Latents], object], times: int = 50) -> float:
    """Return the MiB a second at which latents of 1 MiB become durable."""
    array = np.random.default_rng(0).standard_normal((16, 4, 64, 64), np.float32)
    begun = time.perf_counter()
    for index in range(times):
        write(index, array)
    return times * array.nbytes / 2**20 / (time.perf_counter() - begun)


def _commit(store: Store, index: int, array: Latents) -> None:
    store.commit(digest(["throughput", index]), array, start=0, stop=len(array))


def _save(path: Path, array: Latents) -> None:
    with path.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())


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
