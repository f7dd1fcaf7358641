"""Where windows were joined: how much more a smoothed video changes there than elsewhere.

    python -m benchmarks.seams [--clips 8] [--frames 128] [--steps 10] [--ways handoff] [--out docs/methods]

Held-out sprite clips go through encode, invert and smooth with the embedded video model, in windows of 16
frames, by real plans in a store: without overlap, with overlaps cross-faded, co-denoised, and handed over.
Each is reconstructed (the source's prompt, no guidance), and put before another background, which every
window has to make up.
"""

from __future__ import annotations

import argparse
import itertools
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
from latentloom.sprites.edits import draw_edit
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene
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
PROBLEMS: Final = ("reconstruction", "background")
WANTED: Final = {"co_denoise": 1.10, "handoff": 1.15}
WANTED_DB: Final = 1.0


def main() -> None:
    """Measure, and print a table or JSON."""
    options = _options()
    began = time.monotonic()
    ways = {name: WAYS[name] for name in options.ways}
    rows: dict[str, dict[str, list[Row]]] = {p: {name: [] for name in ways} for p in PROBLEMS}
    curves: dict[str, NDArray[np.float64]] = {}
    for number, (scene, target) in enumerate(moving_scenes(options.clips)):
        with tempfile.TemporaryDirectory() as folder:
            clip = SpriteClip(Path(folder), scene, target, options)
            for problem, (name, rules) in itertools.product(PROBLEMS, ways.items()):
                row, changes = clip.measure(problem, *rules)
                rows[problem][name].append(row)
                if number == 0 and problem == PROBLEMS[-1]:
                    curves |= {name: changes, "source": clip.changes}
                print(f"clip {number + 1}, {problem}, {name}: {_worded(row)}", flush=True)
    tables = {p: {name: _means(of) for name, of in named.items()} for p, named in rows.items()}
    text = to_text(tables, options)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "seams.md").write_text(text, encoding="utf-8")
        plot(curves, options.out / "seams.svg")
    if options.json:
        facts = {"clips": options.clips, "frames": options.frames, "rows": tables}
        print(json.dumps(facts | {"seconds": round(time.monotonic() - began, 1)}))


def moving_scenes(count: int) -> Iterator[tuple[Scene, Scene]]:
    """Yield held-out scenes in which something moves, before two backgrounds.

    Where nothing moves a source has no change to compare with.
    """
    seed = FIRST_SEED
    while count:
        scene, target = draw_edit("background", seed)
        if scene.sprites[0].motion.kind != "still":
            count -= 1
            yield scene, target
        seed += 1


class SpriteClip:
    """One clip in a store of its own, where what two ways share is computed once."""

    def __init__(
        self, folder: Path, scene: Scene, target: Scene, options: argparse.Namespace
    ) -> None:
        self.options, self.texts = options, (caption(scene), caption(target))
        self.source: Frames = render(scene, options.frames)
        self.changes = consecutive_difference(self.source)
        self.path = folder / "clip.mkv"
        write_video(self.path, self.source, Fraction(8), codec="ffv1")
        self.store = Store.open(str(folder / "store"))

    def measure(
        self, problem: str, invert: Mapping[str, Any], smooth: Mapping[str, Any]
    ) -> tuple[Row, NDArray[np.float64]]:
        """Smooth the clip under two window rules.

        Returns:
            Seam score, PSNR against the source and flicker over the source's; and the mean change
            from each frame to the next.
        """
        plan = self.plan(problem, invert, smooth)
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

    def plan(self, problem: str, invert: Mapping[str, Any], smooth: Mapping[str, Any]) -> Plan:
        """Compile the recipe."""
        options = self.options
        source, target = self.texts
        alone = problem == "reconstruction"
        steps = {"num_inference_steps": options.steps, "noise_start": options.noise_start}
        data = {
            "version": 1,
            "source": {"uri": str(self.path)},
            "models": {name: {"path": f"embedded:sprites/{name}"} for name in ("image", "video")},
            "prompts": {"source": source, "target": source if alone else target},
            "numerics": {"threads": options.threads, "device": options.device},
            "stages": [
                {"op": "encode"},
                {"op": "invert", "windows": {"size": SIZE, **invert}, **steps},
                {
                    "op": "smooth",
                    "windows": {"size": SIZE, **smooth},
                    "guidance_scale": 1.0 if alone else options.guidance,
                },
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


def to_text(tables: Mapping[str, Mapping[str, Row]], options: argparse.Namespace) -> str:
    """Write the tables, and whether what is wanted was reached."""
    rebuilt = tables["reconstruction"]
    lines = [
        f"# Seams: {options.clips} clips of {options.frames} frames, windows of {SIZE},"
        f" {options.steps} steps\n",
        "*Seam score*: change from frame to frame where the windows that hold a frame change, over that"
        " elsewhere, divided by the same of the source; 1 is seamless. *PSNR* against the source."
        " *Flicker*: mean change, over the source's. The reconstruction is unguided, the other background"
        f" has guidance {options.guidance:g}.\n",
        "| problem | windows | overlap | seam score | wanted | PSNR, dB | flicker |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {problem} | {name} | {WAYS[name][1]['overlap']} | {row['seam']:.3f} | {_limit(name)} |"
            f" {row['psnr']:.2f} | {row['flicker']:.2f} |"
            for problem, table in tables.items()
            for name, row in table.items()
        ),
    ]
    if WANTED.keys() <= rebuilt.keys():
        apart = abs(rebuilt["co_denoise"]["psnr"] - rebuilt["handoff"]["psnr"])
        lines.append(
            f"\nReconstructions by co_denoise and handoff are {apart:.2f} dB apart (wanted: at most"
            f" {WANTED_DB:g})."
        )
    return "\n".join(lines) + "\n"


def plot(curves: Mapping[str, NDArray[np.float64]], path: Path) -> None:
    """Draw how much the first clip changes from frame to frame, a panel for each way."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same drawing gives the same file.
    mpl.rcParams["svg.hashsalt"] = "latentloom"
    from matplotlib import pyplot

    ways = [name for name in WAYS if name in curves]
    size = (9, 2 * len(ways))
    figure, grid = pyplot.subplots(
        len(ways), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    axes = grid[:, 0]
    for axis, name in zip(axes, ways, strict=True):
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
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
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
