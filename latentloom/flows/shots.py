"""Cut a video's frames into shots: ranges of one scene within which no time-ranged value changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from latentloom.errors import RecipeError
from latentloom.schemas.facts import SourceFacts
from latentloom.schemas.media import VideoInfo
from latentloom.schemas.recipe import Recipe, TimedPrompts


@dataclass(frozen=True)
class Shot:
    """Frames ``[start, stop)`` with the prompt entry and the redo entries that hold there."""

    start: int
    stop: int
    entry: int
    """Index of the entry of the recipe's prompts."""
    redo: tuple[int, ...]


def find_cut(recipe: Recipe, info: VideoInfo) -> tuple[int, int]:
    """Return the frames ``[start, stop)`` that the recipe wants.

    Raises:
        RecipeError: If there are none.
    """
    source = recipe.source
    start, stop = info.frame_range(source.start, source.stop_seconds)
    if start >= stop:
        end = "the end" if source.stop_seconds is None else f"{source.stop_seconds:g} s"
        length = info.seconds(info.num_frames - 1)
        raise RecipeError(
            f"source: no frame between {source.start:g} s and {end};"
            f" the last frame of {source.uri} is at {length:.3f} s"
        )
    return start, stop


def plan_shots(recipe: Recipe, source: SourceFacts, start: int, stop: int) -> list[Shot]:
    """Cut frames ``[start, stop)`` at scene cuts and at every boundary of a prompt entry or redo range.

    Raises:
        RecipeError: If the prompts leave a frame uncovered.
    """
    info = source.info
    spans = _prompt_spans(recipe.prompts, info)
    bounds = {start, stop, *source.cuts}
    if not isinstance(recipe.windows.scenes, str):
        bounds.update(info.frame_range(moment, None)[0] for moment in recipe.windows.scenes)
    bounds.update(frame for span in spans for frame in span)
    bounds.update(frame for redo in recipe.redo for frame in redo.frames)
    cuts = sorted(frame for frame in bounds if start <= frame <= stop)
    shots = []
    entry = 0
    for a, b in pairwise(cuts):
        while entry < len(spans) and spans[entry][1] <= a:
            entry += 1
        if entry == len(spans) or spans[entry][0] > a:
            raise RecipeError(
                f"prompts: no entry covers {info.seconds(a):.3f} s; end each entry where the next starts"
            )
        redo = tuple(
            i for i, again in enumerate(recipe.redo) if again.frames[0] <= a < again.frames[1]
        )
        shots.append(Shot(a, b, entry, redo))
    return shots


def _prompt_spans(entries: Sequence[TimedPrompts], info: VideoInfo) -> list[tuple[int, int]]:
    spans = []
    for index, entry in enumerate(entries):
        following = entries[index + 1].start if index + 1 < len(entries) else None
        end = entry.end if entry.end is not None else following
        spans.append(info.frame_range(entry.start, end))
    return spans
