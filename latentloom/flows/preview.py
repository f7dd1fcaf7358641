"""Write the picture of a run that was told to stop: a few frames of every shot, beside the source's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from latentloom.errors import UsageError
from latentloom.flows.shots import Shot, plan_shots
from latentloom.report.picture import check_ours
from latentloom.report.shots import ShotPictures, draw_shots, save_shots
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import StopPoint
from latentloom.storage.store import Store
from latentloom.tasks.preview import Sample, sample_estimates

MOST_SHOTS = 1000
"""A picture of more is larger than what draws it should hold; then these are spread over the video."""
MOST_FRAMES = 24
"""Frames in a picture, unless it has more shots."""
FRAMES_OF_A_SHOT = 6


def preview_path(plan: Plan) -> Path:
    """Return where the picture goes, beside the video that is to be.

    Raises:
        UsageError: If the recipe has no output, or something that is not ours lies there.
    """
    if plan.output is None:
        raise UsageError(
            "--preview writes beside the output, and the recipe has none; set output.uri"
        )
    path = Path(f"{plan.output}.preview.png")
    check_ours(path, "move it, or choose another output.uri")
    if path.is_dir():
        raise UsageError(f"{path} is a folder; move it, or choose another output.uri")
    return path


def write_preview(store: Store, plan: Plan, until: StopPoint) -> tuple[Path, int]:
    """Decode a few frames of every shot of a stopped stage, and write them as one picture.

    Returns:
        Where it is, and how many shots are not in it: none, unless there are more than it holds.

    Raises:
        UsageError: If it cannot be written.
        MissingChunkError: If a chunk has vanished meanwhile.
    """
    path = preview_path(plan)
    shots = plan_shots(plan.recipe, plan.facts.source, plan.start, plan.stop)
    shown = _spread(shots, MOST_SHOTS)
    title = f"estimates after step {until.step} of {until.num_steps} of {until.stage}, each below its source"
    if len(shown) < len(shots):
        title += f"; {len(shown)} of {len(shots)} shots"
    sheet = draw_shots(title, _pictures(store, plan, until, shots, shown), num_shots=len(shown))
    save_shots(sheet, path)
    return path, len(shots) - len(shown)


def _pictures(
    store: Store, plan: Plan, until: StopPoint, shots: Sequence[Shot], shown: Sequence[Shot]
) -> Iterator[ShotPictures]:
    each = min(FRAMES_OF_A_SHOT, max(1, MOST_FRAMES // len(shown)))
    shot_of = {
        frame: shot for shot in shown for frame in choose_frames(shot.start, shot.stop, each)
    }
    samples = sample_estimates(store, plan, until.stage, sorted(shot_of))
    places = {shot: place for place, shot in enumerate(shots, 1)}
    for shot, found in groupby(samples, key=lambda sample: shot_of[sample.frame]):
        of_shot = list(found)
        title = f"shot {places[shot]}: {_clock(plan, shot)}{_standing(of_shot, until)}"
        yield ShotPictures(
            title, [sample.source for sample in of_shot], [sample.picture for sample in of_shot]
        )


def choose_frames(start: int, stop: int, most: int) -> list[int]:
    """Return at most so many frames, spread evenly over a range.

    Examples:
        >>> choose_frames(0, 100, 4)
        [12, 37, 62, 87]
        >>> choose_frames(7, 9, 4)
        [7, 8]
    """
    count = min(most, stop - start)
    return [start + (2 * k + 1) * (stop - start) // (2 * count) for k in range(count)]


def _spread(shots: Sequence[Shot], most: int) -> list[Shot]:
    return [shots[index] for index in choose_frames(0, len(shots), most)]


def _clock(plan: Plan, shot: Shot) -> str:
    info = plan.facts.source.info
    return f"{info.seconds(shot.start):.2f}-{info.seconds(shot.stop):.2f} s"


def _standing(samples: Sequence[Sample], until: StopPoint) -> str:
    """Say where a shot stands, if that is not where the run stopped."""
    steps = {sample.step for sample in samples} - {until.step}
    if not steps:
        return ""
    if None in steps:
        return ", finished"
    return f", step {max(step for step in steps if step is not None)}"
