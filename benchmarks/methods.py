"""How well an image model, a video model, FLDM and BIVDiff edit, by the truth of the sprite world.

    python -m benchmarks.methods [--clips 20] [--tasks recolour,reshape] [--out docs/methods] [--json]
    python -m benchmarks.methods --sweep alpha [--clips 10] [--tasks recolour] [--set toward=image]
    python -m benchmarks.methods --methods fldm,editor,bivdiff_editor
    python -m benchmarks.methods --cost

Clips were held out from training; those before the default of `--first` are for the choice of settings. With
`--out` the tables are written as Markdown and the sweeps as plots.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter

from benchmarks.editing import (
    METHODS,
    SOURCES,
    SPECIAL,
    STEERED,
    Clip,
    Editor,
    Method,
    Models,
    Settings,
)
from latentloom.models.contrastive import Contrastive, load_contrastive
from latentloom.ops.metrics import frame_consistency, psnr, text_alignment
from latentloom.sprites.caption import caption
from latentloom.sprites.edits import TASKS, Task
from latentloom.sprites.render import render
from latentloom.sprites.score import preserved, score
from latentloom.tasks.group import peak_rss_bytes
from latentloom.tasks.tensors import frames_to_array

Row = dict[str, float]
Name = TypeVar("Name", bound=str)
# Neither a setting nor a model was chosen on clips from here on.
FIRST_SEED: Final = 1_002_000
SWEEPS: Final[dict[str, tuple[Method, str, tuple[float | str, ...]]]] = {
    "alpha": ("fldm", "alpha", tuple(round(0.1 * k, 1) for k in range(11))),
    "tau": ("fldm", "tau", (0, 3, 6, 9, 12, 15, 18)),
    "toward": ("fldm", "toward", ("video", "constant", "image")),
    "ratio": ("bivdiff", "ratio", (0.0, 0.25, 0.5, 0.75, 1.0)),
    "inversion": ("bivdiff", "inversion", ("mixed", "none")),
    "smoothing": ("bivdiff", "smoothing_guidance_scale", (1.0, 2.0, 3.0, 5.0, 7.5)),
    "sources": ("fldm", "num_sources", (2, 3, 4)),
}
TITLES: Final = {
    "image": "image model alone",
    "video": "video model alone",
    "fldm": "FLDM",
    "bivdiff": "BIVDiff",
    "editor": "the task's own editor, frame by frame",
    "bivdiff_editor": "BIVDiff on the task's own editor",
    "target": "the target itself, through the VAE",
}
# Key of a row, its title in tables, and its format.
COLUMNS: Final[tuple[tuple[str, str, str], ...]] = (
    ("alignment", "text alignment", "{:.1f}"),
    ("edited", "edited attribute", "{:.1%}"),
    ("all", "all right", "{:.1%}"),
    ("iou", "IoU", "{:.2f}"),
    ("preserved_db", "preserved, dB", "{:.1f}"),
    ("consistency", "consistency", "{:.4f}"),
    ("flicker_ratio", "flicker", "{:.2f}"),
)
LEGEND: Final = """\
*Text alignment*: mean cosine of frames and target caption x 100, by `embedded:sprites/contrastive`.
*Edited attribute*: frames in which what was asked for is there, by `latentloom.sprites.score`; *all
right*: every attribute, and IoU above 0.6. *Preserved*: PSNR against the source where the edit should
change nothing. *Consistency*: mean cosine of neighbouring frames. *Flicker*: mean change from frame to
frame, over that of the target itself.
"""


def main() -> None:
    """Measure what is asked for, and print tables or JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    if options.cost_of:
        print(json.dumps(cost_of(options.cost_of, options.frames)))
        return
    began = time.monotonic()
    facts: dict[str, Any] = {"clips": options.clips, "frames": options.frames}
    if options.cost:
        facts["cost"] = cost(options)
    elif options.sweep:
        facts["sweep"] = sweep(options)
    else:
        facts["tasks"] = compare(options)
    facts["seconds"] = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps(facts))


def compare(options: argparse.Namespace) -> dict[str, dict[str, Row]]:
    """Run every method on every task; return the means by task and method."""
    judge, models = Judge.load(), Models.load()
    tables: dict[str, dict[str, Row]] = {}
    for task in options.tasks:
        rows: dict[str, list[Row]] = {name: [] for name in (*options.methods, "target")}
        for clip in _clips(task, options):
            editor = Editor(models, clip)
            rows["target"].append(judge.target(editor))
            for method in options.methods:
                rows[method].append(judge.score(clip, editor.edit(method, options.set)))
        tables[task] = {name: means(of, rows["target"]) for name, of in rows.items()}
        steered = (
            "" if task not in STEERED else ", image and video model held to the source's edges"
        )
        table = to_table("method", {TITLES[k]: v for k, v in tables[task].items()})
        title = f"# {task}, {options.clips} held-out clips{steered}{_changes(options.set)}\n"
        text = "\n".join([title, LEGEND, table])
        print(text, flush=True)
        _write(options.out, f"{task}.md", text)
    return tables


def sweep(options: argparse.Namespace) -> dict[str, Row]:
    """Vary one setting on one task; return the means by its value."""
    method, field, values = SWEEPS[options.sweep]
    task = options.tasks[0]
    judge, models = Judge.load(), Models.load()
    rows: dict[str, list[Row]] = {str(value): [] for value in values}
    targets = []
    for clip in _clips(task, options):
        editor = Editor(models, clip)
        targets.append(judge.target(editor))
        for value in values:
            changed: dict[str, Any] = {field: value}
            settings = dataclasses.replace(options.set, **changed)
            rows[str(value)].append(judge.score(clip, editor.edit(method, settings)))
    table = {name: means(of, targets) for name, of in rows.items()}
    table["target"] = means(targets, targets)
    title = f"# {TITLES[method]}: {options.sweep}, {task}, {options.clips} held-out clips"
    title += f"{_changes(options.set)}\n"
    names = f"Sources, in this order: {', '.join(SOURCES)}.\n" if field == "num_sources" else ""
    text = "\n".join([title, LEGEND, names, to_table(options.sweep, table)])
    print(text, flush=True)
    _write(options.out, f"sweep-{options.sweep}.md", text)
    if options.out:
        plot(table, options.sweep, values, options.out / f"sweep-{options.sweep}.svg")
    return table


def cost(options: argparse.Namespace) -> dict[str, Row]:
    """Measure each method in a process of its own; return seconds a frame and peak memory."""
    rows: dict[str, Row] = {}
    lines = ["| method | seconds a frame | peak memory, MiB | beyond libraries and models, MiB |"]
    lines.append("|---|---|---|---|")
    for method in options.methods:
        arguments = ["--cost-of", method, "--frames", str(options.frames)]
        arguments += ["--threads", str(options.threads)]
        command = [sys.executable, "-m", "benchmarks.methods", *arguments]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        row = rows[method] = json.loads(result.stdout.splitlines()[-1])
        peak, loaded = row["peak_bytes"] / 2**20, row["loaded_bytes"] / 2**20
        lines.append(
            f"| {TITLES[method]} | {row['seconds_per_frame']:.3f} | {peak:.0f} | {peak - loaded:.0f} |"
        )
    text = "\n".join([f"# Cost of one window of {options.frames} frames\n", *lines, ""])
    print(text)
    _write(options.out, "cost.md", text)
    return rows


def cost_of(method: Method, num_frames: int) -> Row:
    """Measure a method in this process: from frames to frames, its inversions included."""
    models = Models.load()
    loaded = peak_rss_bytes()
    Editor(models, Clip.draw("recolour", FIRST_SEED, 2)).edit(method, Settings())
    editor = Editor(models, Clip.draw("recolour", FIRST_SEED, num_frames))
    began = time.perf_counter()
    editor.edit(method, Settings())
    seconds = time.perf_counter() - began
    return {
        "seconds_per_frame": seconds / num_frames,
        "peak_bytes": peak_rss_bytes(),
        "loaded_bytes": loaded,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """Scores frames by the world's truth and by the contrastive model."""

    contrastive: Contrastive

    @classmethod
    def load(cls) -> Judge:
        """Load the contrastive model."""
        return cls(load_contrastive("embedded:sprites/contrastive"))

    def score(self, clip: Clip, frames: torch.Tensor) -> Row:
        """Score edited frames `(F, 3, H, W)` in [-1, 1]."""
        pixels = frames_to_array(frames, "uint8")
        result = score(pixels, clip.target)
        kept = preserved(clip.source, clip.target, len(pixels), pixels.shape[1])
        decibels = psnr(pixels, render(clip.source, len(pixels)), mask=kept)
        seen = self.contrastive.embed_frames(frames).numpy()
        said = self.contrastive.embed_texts([caption(clip.target, motion=False)])[0].numpy()
        every, neighbours = frame_consistency(seen)
        sprite = result.colour_right & result.shape_right & result.style_right
        # Wherever it was put: no prompt says where.
        changed = {
            "recolour": result.colour_right,
            "reshape": result.shape_right,
            "style": result.style_right,
            "background": result.background_right,
            "insert": sprite,
            "remove": sprite,
        }
        return {
            **result.means(),
            "edited": float(changed[clip.task].mean()),
            "alignment": text_alignment(seen, said),
            "consistency": neighbours,
            "consistency_all_pairs": every,
            "preserved_db": _mean(decibels),
        }

    def target(self, editor: Editor) -> Row:
        """Score what the edit should give, encoded and decoded: the best that latents can do."""
        vae = editor.models.image.vae
        wanted = Editor(editor.models, dataclasses.replace(editor.clip, source=editor.clip.target))
        return self.score(editor.clip, vae.decode_latents(wanted.latents))


def means(rows: list[Row], targets: list[Row]) -> Row:
    """Return the means over clips; flicker also over that of the targets."""
    result = {key: _mean([row[key] for row in rows]) for key in rows[0]}
    reference = _mean([row["flicker"] for row in targets])
    # Of the means: clips that stand still have no flicker to divide by.
    return {**result, "flicker_ratio": result["flicker"] / reference if reference else math.nan}


def to_table(head: str, rows: dict[str, Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [f"| {head} | " + " | ".join(title for _, title, _ in COLUMNS) + " |"]
    lines.append("|" + "---|" * (len(COLUMNS) + 1))
    for name, row in rows.items():
        cells = ("-" if math.isnan(row[key]) else f.format(row[key]) for key, _, f in COLUMNS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(table: dict[str, Row], name: str, values: tuple[float | str, ...], path: Path) -> None:
    """Draw a sweep, a panel for each measure, with the target's value as a dashed line."""
    import matplotlib as mpl

    mpl.use("svg")
    # The same drawing gives the same file.
    mpl.rcParams["svg.hashsalt"] = "latentloom"
    from matplotlib import pyplot

    shown = [column for column in COLUMNS if column[1] != "IoU"]
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.5), layout="constrained")
    for axis, (key, title, _) in zip(axes.flat, shown, strict=True):
        axis.plot(values, [table[str(value)][key] for value in values], marker="o")
        axis.axhline(table["target"][key], linestyle="--", color="grey")
        axis.set(title=title, xlabel=name)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _clips(task: Task, options: argparse.Namespace) -> Iterable[Clip]:
    for index in range(options.clips):
        yield Clip.draw(task, options.first + index, options.frames)


def _mean(values: Any) -> float:
    """Return the mean of what is finite: a clip may have no pixel to preserve."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else math.nan


def _write(folder: Path | None, name: str, text: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.rstrip() + "\n", encoding="utf-8")


def _changes(settings: Settings) -> str:
    """Return what is not at its default, for a title."""
    defaults = dataclasses.asdict(Settings())
    changed = [f"{k} {v}" for k, v in dataclasses.asdict(settings).items() if v != defaults[k]]
    return f" ({', '.join(changed)})" if changed else ""


def _settings(texts: list[str]) -> Settings:
    pairs = dict(text.split("=", 1) for text in texts)
    return TypeAdapter(Settings).validate_python(pairs)


def _tasks(text: str) -> list[Task]:
    return _named(text, TASKS)


def _methods(text: str) -> list[Method]:
    return _named(text, METHODS)


def _named(text: str, known: tuple[Name, ...]) -> list[Name]:
    names = [one for part in text.split(",") for one in known if one == part.strip()]
    if len(names) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: choose of {', '.join(known)}")
    return names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip: one window")
    parser.add_argument("--tasks", type=_tasks, default=list(TASKS), help="separated by commas")
    parser.add_argument(
        "--methods",
        type=_methods,
        default=[method for method in METHODS if method not in SPECIAL],
        help=f"separated by commas, of {', '.join(METHODS)}",
    )
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="seed of the first clip")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--sweep", choices=list(SWEEPS), help="vary one setting on the first task")
    parser.add_argument("--cost", action="store_true", help="measure time and memory instead")
    parser.add_argument("--cost-of", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write tables and plots there")
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    options = parser.parse_args()
    options.set = _settings(options.set)
    return options


if __name__ == "__main__":
    main()
