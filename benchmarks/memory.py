"""Whether memory grows with the video: peak of the whole process tree, at 512 px, on stand-in models.

    python benchmarks/memory.py [--frames 500,4000] [--json]

Each length is a command of its own. The baseline is what the tree holds once the first chunk is done:
libraries, models, server and decoder are loaded then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from latentloom.flows.calibration import TreeWatch, tree_bytes
from latentloom.flows.example import SCENE
from latentloom.media.write import write_video
from latentloom.sprites.render import render

RATE = Fraction(25)
STAGES: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "num_inference_steps": 2},
    {"op": "fuse", "sources": [{"model": "image"}, {"model": "video"}]},
    {"op": "decode"},
]


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", default="500,4000")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    print(
        f"{'frames':>8} {'peak MiB':>10} {'baseline':>10} {'growth':>10} {'predicted':>10} {'s/frame':>10}"
    )
    for text in options.frames.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), int(text))
        rows.append(row)
        print(
            f"{row['frames']:8} {row['peak_rss_bytes'] / 2**20:10.0f}"
            f" {row['baseline_rss_bytes'] / 2**20:10.0f} {row['growth_bytes'] / 2**20:10.0f}"
            f" {row['predicted_bytes'] / 2**20:10.0f} {row['seconds_per_frame']:10.4f}",
            flush=True,
        )
    ratio = rows[-1]["growth_bytes"] / rows[0]["growth_bytes"]
    print(f"growth of the longest over that of the shortest: {ratio:.3f}")
    if options.json:
        print(json.dumps({"rows": rows, "ratio": ratio}))


def measure(folder: Path, num_frames: int) -> dict[str, Any]:
    """Run a recipe on a clip of so many frames, and watch the memory of its processes."""
    # A small clip, enlarged on reading: what is measured is the run, not the making of the clip.
    write_video(folder / "clip.mp4", render(SCENE, num_frames, fps=float(RATE)), RATE)
    recipe = {
        "version": 1,
        "source": {"uri": "clip.mp4", "size": {"width": 512, "height": 512}},
        "models": {
            "image": {"path": "embedded:standin/image"},
            "video": {"path": "embedded:standin/video"},
        },
        "prompts": {"target": "a"},
        "stages": STAGES,
        "output": {"uri": "edited.mp4", "preset": "ultrafast"},
    }
    with (folder / "recipe.yaml").open("w") as file:
        YAML(typ="rt", pure=True).dump(recipe, file)
    command = [sys.executable, "-m", "latentloom"]
    planned = subprocess.run(
        [*command, "plan", "recipe.yaml", "--json"], cwd=folder, capture_output=True, check=True
    )
    begun = time.monotonic()
    process = subprocess.Popen(
        [*command, "run", "recipe.yaml"], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    log, baseline = [], 0
    with TreeWatch(process.pid) as watch:
        for line in process.stderr or ():
            log.append(line)
            if " chunk 1/" in line and not baseline:
                baseline = tree_bytes(process.pid)
        if process.wait() != 0:
            raise SystemExit("".join(log))
        peak = watch.take_peak()
    return {
        "frames": num_frames,
        "peak_rss_bytes": peak,
        "baseline_rss_bytes": baseline,
        "growth_bytes": peak - baseline,
        "predicted_bytes": json.loads(planned.stdout.splitlines()[-1])["peak_bytes"],
        "seconds_per_frame": (time.monotonic() - begun) / num_frames,
    }


if __name__ == "__main__":
    main()
