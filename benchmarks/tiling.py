"""What tiles save: one large frame upsampled by the embedded family, refused without tiles and run with them.

    python benchmarks/tiling.py [--width 3840] [--height 2160] [--frames 1] [--memory 4GiB] [--json]

The source is half as wide and high. No server runs: what is measured is the process and its decoder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from latentloom.errors import ResourceError
from latentloom.flows.calibration import TreeWatch
from latentloom.flows.compile import compile_plan
from latentloom.flows.example import SCENE
from latentloom.flows.execute import execute
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.schemas.recipe import Recipe
from latentloom.sprites.render import FPS, render
from latentloom.storage.store import Store

TILING = {"size": 512, "overlap": 64}


def main() -> None:
    """Plan without tiles, run with them, and print what both need."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=3840)
    parser.add_argument("--height", type=int, default=2160)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measure(Path(folder), options)
    for name, value in row.items():
        print(f"{name:32} {value}")
    if options.json:
        print(json.dumps(row))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the plan says without tiles, and what it says and a run takes with them."""
    clip = folder / "clip.mp4"
    write_video(clip, np.stack(list(render(SCENE, options.frames))), Fraction(FPS))
    store = Store.open(str(folder / "store"))
    row: dict[str, Any] = {"frames": options.frames, "limit": options.memory}
    try:
        plan(store, recipe(clip, folder, options, tiling=None))
        row["untiled"] = "fits"
    except ResourceError as error:
        row["untiled"] = str(error)
    free = recipe(clip, folder, options, tiling=None, memory="1TiB")
    row["untiled_predicted_bytes"] = plan(store, free).peak_bytes
    tiled = plan(store, recipe(clip, folder, options, tiling=TILING))
    row["tiled_predicted_bytes"] = tiled.peak_bytes
    begun = time.monotonic()
    with TreeWatch() as watch:
        execute(store, tiled, register(store, tiled))
        row["tiled_peak_rss_bytes"] = watch.take_peak()
    row["tiled_seconds"] = time.monotonic() - begun
    return row


def plan(store: Store, made: Recipe) -> Plan:
    """Compile a recipe, without what earlier runs measured."""
    facts = resolve(made, store)
    return compile_plan(made, facts.model_copy(update={"measured_bytes": {}}))


def recipe(
    clip: Path,
    folder: Path,
    options: argparse.Namespace,
    *,
    tiling: dict[str, int] | None,
    memory: str | None = None,
) -> Recipe:
    """Return a recipe that doubles both sides."""
    return validate_recipe(
        {
            "version": 1,
            "source": {
                "uri": str(clip),
                "size": {"width": options.width // 2, "height": options.height // 2},
            },
            "models": {
                name: {"path": f"embedded:sprites/{name}"} for name in ("image", "upsample")
            },
            "prompts": {"target": "a red filled star"},
            "chunks": {"frames": 1},
            "numerics": {"micro_batch": 1, "threads": 1},
            "limits": {"memory": memory or options.memory},
            "stages": [
                {"op": "encode", "tiling": tiling},
                {"op": "upsample", "num_inference_steps": options.steps, "tiling": tiling},
                {"op": "decode", "tiling": tiling},
            ],
            "output": {"uri": str(folder / "large.mp4"), "preset": "ultrafast"},
        }
    )


if __name__ == "__main__":
    main()
