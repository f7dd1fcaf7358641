"""What plans foretell against what runs take: peak memory of the process tree, and bytes in the store.

    python -m benchmarks.plan [--shapes fuse,smooth,edit,upsample] [--json]

Four shapes of run on the embedded models and a CPU, each a command of its own in a fresh store, so that no
calibration of an earlier run helps. Wanted: measured <= predicted <= 1.5 x measured memory, and the bytes of
chunks and records within 2 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from latentloom.flows.calibration import TreeWatch
from latentloom.flows.example import SCENE
from latentloom.media.write import write_video
from latentloom.sprites.render import FPS, render
from latentloom.storage.maintenance import usage
from latentloom.storage.store import Store

MOST_OVER: Final = 1.5
"""Predicted over measured memory."""
MOST_BYTES_OFF: Final = 0.02
MIB: Final = 1 << 20

ENCODE: Final = {"op": "encode"}
INVERT: Final = {"op": "invert", "num_inference_steps": 2}
DECODE: Final = {"op": "decode"}
CONTROLLED: Final = {"model": "image", "controlnet": {"model": "control"}}
SHAPES: Final[Mapping[str, Mapping[str, Any]]] = {
    "fuse": {
        "frames": 64,
        "size": 128,
        "windows": {"size": 16, "overlap": 4},
        "stages": [
            ENCODE,
            INVERT,
            {"op": "fuse", "tau": 1, "sources": [CONTROLLED, {"model": "video"}]},
            DECODE,
        ],
    },
    "smooth": {
        "frames": 96,
        "size": 96,
        "windows": {"size": 8, "overlap": 2, "mode": "co_denoise"},
        "stages": [ENCODE, INVERT, {"op": "smooth"}, DECODE],
    },
    "edit": {
        "frames": 32,
        "size": 256,
        "numerics": {"micro_batch": 4},
        "stages": [
            {"op": "edit", "kind": "img2img", "num_inference_steps": 2, "strength": 1.0},
            ENCODE,
            DECODE | {"keep": True},
        ],
    },
    "upsample": {
        "frames": 64,
        "size": 64,
        "chunks": {"frames": 32},
        "numerics": {"micro_batch": 16},
        "stages": [ENCODE, {"op": "upsample", "num_inference_steps": 2}, DECODE],
    },
}
"""Length and size of the source, and the parts of the recipe that differ."""


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    print(
        f"{'shape':>10} {'memory MiB':>11} {'predicted':>10} {'ratio':>6}"
        f" {'store MiB':>10} {'predicted':>10} {'off':>7}"
    )
    for name in options.shapes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), SHAPES[name])
        rows.append({"shape": name, **row})
        print(
            f"{name:>10} {row['peak_rss_bytes'] / MIB:11.0f}"
            f" {row['predicted_peak_bytes'] / MIB:10.0f} {row['memory_ratio']:6.2f}"
            f" {row['store_bytes'] / MIB:10.2f} {row['predicted_store_bytes'] / MIB:10.2f}"
            f" {row['store_off']:+7.2%}  {worst_stages(row)}",
            flush=True,
        )
    if options.json:
        print(json.dumps({"rows": rows, "all_within": all(within(row) for row in rows)}))


def within(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is as good as is wanted."""
    ratio, off = float(row["memory_ratio"]), float(row["store_off"])
    return 1 <= ratio <= MOST_OVER and abs(off) <= MOST_BYTES_OFF


def worst_stages(row: Mapping[str, Any]) -> str:
    """Name the stage that each peak is of."""
    predicted, measured = row["predicted_by_stage"], row["measured_by_stage"]
    names = [max(found, key=found.__getitem__) for found in (measured, predicted) if found]
    return " / ".join(names)


def measure(folder: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    """Plan and run one shape, and watch the memory of its processes."""
    size = shape["size"]
    write_video(folder / "clip.mp4", render(SCENE, shape["frames"]), Fraction(FPS))
    models = ("image", "video", "control", "upsample")
    recipe = {
        "version": 1,
        "source": {"uri": "clip.mp4", "size": {"width": size, "height": size}},
        "models": {name: {"path": f"embedded:sprites/{name}"} for name in models},
        "prompts": {"source": "a red filled star", "target": "a blue filled star"},
        "output": {"uri": "edited.mp4"},
        **{name: part for name, part in shape.items() if name not in ("frames", "size")},
    }
    recipe["numerics"] = {"device": "cpu", **shape.get("numerics", {})}
    with (folder / "recipe.yaml").open("w") as file:
        YAML(typ="rt", pure=True).dump(recipe, file)
    planned = _json_of(_latentloom(folder, "plan"))
    process = subprocess.Popen(
        _command("run"), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with TreeWatch(process.pid) as watch:
        log, _ = process.communicate()
        if process.returncode != 0:
            raise SystemExit(log)
        peak = watch.take_peak()
    return _compared(folder, planned, peak)


def _compared(folder: Path, planned: Mapping[str, Any], peak: int) -> dict[str, Any]:
    store = Store.open(str(folder / ".latentloom"))
    used = usage(store)
    stored = used["data"].bytes + used["records"].bytes
    foretold = sum(stage["bytes"] for stage in planned["stages"] if not stage["transient"])
    return {
        "peak_rss_bytes": peak,
        "predicted_peak_bytes": planned["peak_bytes"],
        "memory_ratio": planned["peak_bytes"] / peak,
        "store_bytes": stored,
        "predicted_store_bytes": foretold,
        "store_off": foretold / stored - 1,
        "predicted_by_stage": {s["name"]: s["peak_bytes"] for s in planned["stages"]},
        "measured_by_stage": _measured_by_stage(store),
    }


def _measured_by_stage(store: Store) -> dict[str, int]:
    """Return the most that the process which computed has held by the end of each stage's chunks."""
    peaks: dict[str, int] = {}
    for event in store.events(store.runs()[-1]):
        found = event.detail.get("peak_bytes")
        if event.stage is not None and isinstance(found, int):
            peaks[event.stage] = max(found, peaks.get(event.stage, 0))
    return peaks


def _command(command: str) -> list[str]:
    return [sys.executable, "-m", "latentloom", command, "recipe.yaml", "--json"]


def _latentloom(folder: Path, command: str) -> str:
    done = subprocess.run(
        _command(command), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return done.stdout


def _json_of(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
