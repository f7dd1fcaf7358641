"""How much faster two worker processes are than one: frame-local stages, and windows that meet at every step.

    python -m benchmarks.workers [--frames 192] [--steps 4] [--workers 2] [--json]

One torch thread in each worker, on the embedded models. Every number of workers has a store of its own and a
session of its own; a first flow over a short clip loads the models. Timed are the stages, from the first task
group to the last record, without the start of server and workers. What the machine itself can do stands
below: the frame-local chunks dealt out among bare processes, without Prefect, Dask or store.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.bare import Memory, compute
from latentloom.flows import engine
from latentloom.flows.compile import compile_plan
from latentloom.flows.example import SCENE
from latentloom.flows.launch import find_needed, run_on
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.sprites.render import FPS, render
from latentloom.storage.store import Store
from latentloom.tasks.loading import PlanModels, use_profile

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Barrier

SHORT_FRAMES = 64
KINDS: Final = {"frame_local": ("edit", "encode"), "co_denoise": ("invert", "smooth")}
"""Stages of the recipe by how their chunks depend on one another."""
BARE: Final = "bare"


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=192)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.frames <= SHORT_FRAMES:
        parser.error(f"--frames must be more than the {SHORT_FRAMES} that load the models")
    engine.quiet_environment()
    with tempfile.TemporaryDirectory() as folder:
        seconds = {
            workers: measure(Path(folder), options.frames, options.steps, workers)
            for workers in (1, options.workers)
        }
        for workers, taken in seconds.items():
            taken[BARE] = measure_bare(Path(folder), options.frames, options.steps, workers)
    rows = []
    print(f"{'stages':12} {'1 worker':>10} {f'{options.workers} workers':>10} {'speed-up':>9}")
    for kind in (*KINDS, BARE):
        one, many = seconds[1][kind], seconds[options.workers][kind]
        rows.append({"stages": kind, "seconds": one, "seconds_shared": many, "speedup": one / many})
        print(f"{kind:12} {one:10.2f} {many:10.2f} {one / many:9.2f}")
    if options.json:
        print(json.dumps({"workers": options.workers, "rows": rows}))


def measure(folder: Path, num_frames: int, num_steps: int, workers: int) -> dict[str, float]:
    """Return the seconds that each kind of stages takes on so many workers."""
    store = Store.open(str(folder / f"store-{workers}"))
    with engine.session(workers=workers, threads=1) as session:
        for length in (SHORT_FRAMES, num_frames):
            plan = make_plan(store, write_clip(folder, length), num_steps)
            run = register(store, plan).run
            need = find_needed(store, plan, None)
            ended = run_on(session, store, plan, run, need, tick=lambda: None)
    taken = {stage.name: stage.seconds for stage in RunState.model_validate(ended).stages}
    return {kind: sum(taken[name] for name in names) for kind, names in KINDS.items()}


def measure_bare(folder: Path, num_frames: int, num_steps: int, workers: int) -> float:
    """Return the seconds until the last of so many bare processes has made its frame-local chunks."""
    store = Store.open(str(folder / "bare"))
    plan = make_plan(store, write_clip(folder, num_frames), num_steps)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers)
    seconds: SimpleQueue[float] = context.SimpleQueue()
    processes = [
        context.Process(target=make_share, args=(plan, turn, workers, ready, seconds))
        for turn in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a bare process ended with {process.exitcode}")
    return max(seconds.get() for _ in processes)


def make_share(
    plan: Plan, turn: int, workers: int, ready: Barrier, seconds: SimpleQueue[float]
) -> None:
    """Make the frame-local chunks whose turn it is, once every process has made a first one."""
    use_profile(plan)
    models = PlanModels(plan)
    make_chunks(plan, models, slice(1))
    ready.wait()
    begun = time.perf_counter()
    make_chunks(plan, models, slice(turn, None, workers))
    seconds.put(time.perf_counter() - begun)


def make_chunks(plan: Plan, models: PlanModels, which: slice) -> None:
    """Make some of the frame-local chunks, in memory."""
    memory = Memory()
    for name in KINDS["frame_local"]:
        for index in range(len(plan.by_name[name].chunks))[which]:
            compute(memory, plan, name, index, models)


def write_clip(folder: Path, num_frames: int) -> Path:
    """Render the clip, if it is not there; returns where it is."""
    clip = folder / f"clip-{num_frames}.mp4"
    if not clip.exists():
        write_video(clip, render(SCENE, num_frames), Fraction(FPS))
    return clip


def make_plan(store: Store, clip: Path, num_steps: int) -> Plan:
    """Compile a recipe with frame-local stages, and stages whose windows meet at every step."""
    data: dict[str, Any] = {
        "version": 1,
        "source": {"uri": str(clip)},
        "models": {name: {"path": f"embedded:sprites/{name}"} for name in ("image", "video")},
        "prompts": {"source": "a red filled star", "target": "a blue filled star"},
        "numerics": {"threads": 1},
        "windows": {"mode": "co_denoise"},
        "stages": [
            {"op": "edit", "num_inference_steps": num_steps, "keep": True},
            {"op": "encode"},
            {"op": "invert", "num_inference_steps": num_steps},
            {"op": "smooth", "guidance_scale": 3.0},
        ],
    }
    recipe = validate_recipe(data)
    return compile_plan(recipe, resolve(recipe, store))


if __name__ == "__main__":
    main()
