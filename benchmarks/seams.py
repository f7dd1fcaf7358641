"""Where windows were joined: how much more a smoothed video changes there than elsewhere.

    python -m benchmarks.seams [--clips 8] [--frames 128] [--steps 10] [--out docs/methods] [--json]

Held-out sprite clips go through encode, invert and smooth with the embedded video model, in windows of 16
frames, by real plans in a store: without overlap, with overlaps cross-faded, co-denoised, and handed over.
Source and target prompt are the same, so that the result can be compared with the source.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentloom.flows.compile import compile_plan
from latentloom.flows.execute import execute
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.ops.metrics import consecutive_difference, psnr, seam_score
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.sprites.caption import caption
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene, random_scene
from latentloom.storage.store import Store

Frames = NDArray[np.uint8]
Row = dict[str, float]

SIZE: Final = 16
OVERLAP: Final = 4
# No setting and no model was chosen on clips from here on.
FIRST_SEED: Final = 1_004_000
ALONE: Final = {"mode": "independent", "overlap": 0}
FADED: Final = {"mode": "independent", "overlap": OVERLAP}
MET: Final = {"mode": "co_denoise", "overlap": OVERLAP}
WAYS: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "independent, no overlap": (ALONE, ALONE),
    "independent, cross-faded": (FADED, FADED),
    "co_denoise": (MET, MET),
    "handoff": (MET, {"mode": "handoff", "overlap": OVERLAP}),
}
"""Window rules of the inversion and of smoothing."""
WANTED: Final = {"co_denoise": 1.10, "handoff": 1.15}
WANTED_DB: Final = 1.0


def main() -> None:
    """Measure, and print a table or JSON."""
    options = _options()
    began = time.monotonic()
    rows: dict[str, list[Row]] = {name: [] for name in WAYS}
    curves: dict[str, NDArray[np.float64]] = {}
    for number, scene in enumerate(moving_scenes(options.clips)):
        with tempfile.TemporaryDirectory() as folder:
            clip = SpriteClip(Path(folder), scene, options)
            for name, rules in WAYS.items():
                row, changes = clip.measure(*rules)
                rows[name].append(row)
                curves.setdefault(name, changes)
                print(f"clip {number + 1}, {name}: {_worded(row)}", flush=True)
            curves.setdefault("source", clip.changes)
    table = {name: _means(of) for name, of in rows.items()}
    text = to_text(table, options)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "seams.md").write_text(text, encoding="utf-8")
        plot(curves, options.out / "seams.svg")
    if options.json:
        facts = {"clips": options.clips, "frames": options.frames, "rows": table}
        print(json.dumps(facts | {"seconds": round(time.monotonic() - began, 1)}))


def moving_scenes(count: int) -> Iterator[Scene]:
    """Yield held-out scenes in which something moves: elsewhere a source has no change to compare with."""
    seed = FIRST_SEED
    while count:
        scene = random_scene(seed)
        if scene.sprites[0].motion.kind != "still":
            count -= 1
            yield scene
        seed += 1


class SpriteClip:
    """One clip in a store of its own, where what two ways share is computed once."""

    def __init__(self, folder: Path, scene: Scene, options: argparse.Namespace) -> None:
        self.options, self.text = options, caption(scene)
        self.source: Frames = render(scene, options.frames)
        self.changes = consecutive_difference(self.source)
        self.path = folder / "clip.mkv"
        write_video(self.path, self.source, Fraction(8), codec="ffv1")
        self.store = Store.open(str(folder / "store"))

    def measure(
        self, invert: Mapping[str, Any], smooth: Mapping[str, Any]
    ) -> tuple[Row, NDArray[np.float64]]:
        """Smooth the clip under two window rules.

        Returns:
            Seam score, PSNR against the source and flicker over the source's; and the mean change
            from each frame to the next.
        """
        plan = self.plan(invert, smooth)
        execute(self.store, plan, register(self.store, plan))
        frames = np.concatenate(
            [self.store.read(chunk.key) for chunk in plan.by_name["decode"].chunks]
        )
        changes = consecutive_difference(frames)
        row = {
            "seam": seam_score(changes, self.changes, joins(plan)),
            "psnr": float(psnr(frames, self.source).mean()),
            "flicker": float(changes.mean() / self.changes.mean()),
        }
        return row, changes

    def plan(self, invert: Mapping[str, Any], smooth: Mapping[str, Any]) -> Plan:
        """Compile the recipe."""
        options, size = self.options, {"size": SIZE}
        steps = {"num_inference_steps": options.steps, "noise_start": options.noise_start}
        data = {
            "version": 1,
            "source": {"uri": str(self.path)},
            "models": {name: {"path": f"embedded:sprites/{name}"} for name in ("image", "video")},
            "prompts": {"source": self.text, "target": self.text},
            "numerics": {"threads": options.threads, "device": options.device},
            "stages": [
                {"op": "encode"},
                {"op": "invert", "windows": {**size, **invert}, **steps},
                {"op": "smooth", "windows": {**size, **smooth}, "guidance_scale": options.guidance},
                {"op": "decode", "keep": True},
            ],
        }
        recipe = validate_recipe(data)
        return compile_plan(recipe, resolve(recipe, self.store))


def joins(plan: Plan) -> set[int]:
    """Return the frames from which other windows hold than in the frame before."""
    chunks = plan.by_name["smooth"].chunks
    bounds = {chunk.start for chunk in chunks} | {chunk.stop for chunk in chunks}
    return {bound - plan.start for bound in bounds} - {0, plan.num_frames}


def to_text(table: Mapping[str, Row], options: argparse.Namespace) -> str:
    """Write the table, and whether what is wanted was reached."""
    apart = abs(table["co_denoise"]["psnr"] - table["handoff"]["psnr"])
    lines = [
        f"# Seams: {options.clips} clips of {options.frames} frames, windows of {SIZE},"
        f" {options.steps} steps, guidance {options.guidance:g}\n",
        "*Seam score*: change from frame to frame where the windows that hold a frame change, over that"
        " elsewhere, divided by the same of the source; 1 is seamless. *PSNR* against the source."
        " *Flicker*: mean change, over the source's.\n",
        "| windows | overlap | seam score | wanted | PSNR, dB | flicker |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {WAYS[name][1]['overlap']} | {row['seam']:.3f} | {_limit(name)} |"
            f" {row['psnr']:.2f} | {row['flicker']:.2f} |"
            for name, row in table.items()
        ),
        f"\nco_denoise and handoff are {apart:.2f} dB apart (wanted: at most {WANTED_DB:g}).",
    ]
    return "\n".join(lines) + "\n"


def plot(curves: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Draw how much the first clip changes from frame to frame, a panel for each way."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same drawing gives the same file.
    mpl.rcParams["svg.hashsalt"] = "latentloom"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(WAYS), 1, figsize=(9, 8), sharex=True, layout="constrained")
    for axis, name in zip(axes, WAYS, strict=True):
        frames = np.arange(1, len(curves[name]) + 1)
        axis.plot(frames, curves["source"], color="grey", linewidth=1, label="source")
        axis.plot(frames, curves[name], linewidth=1, label=name)
        stride = SIZE - int(WAYS[name][1]["overlap"])
        for join in range(stride, len(frames), stride):
            axis.axvline(join, color="grey", linewidth=0.4, linestyle=":")
        axis.legend(loc="upper right", fontsize="small")
        axis.set_ylabel("change")
    axes[-1].set_xlabel("frame; dotted: a window begins")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _limit(name: str) -> str:
    return f"<= {WANTED[name]:.2f}" if name in WANTED else ""


def _means(rows: list[Row]) -> Row:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _worded(row: Row) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in row.items())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--noise-start", type=int, default=0, help="of the inversion")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="write the table and a plot there")
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    return parser.parse_args()


if __name__ == "__main__":
    main()
