"""How side inputs fit the frames of a stage. Pure: works on facts."""

from __future__ import annotations

from typing import Any

from latentloom.schemas.facts import Facts, MapFacts
from latentloom.schemas.media import Fit
from latentloom.schemas.recipe import Recipe

MAX_ASPECT_ERROR = 0.01
"""Part by which aspect ratios may differ: 1080 lines are coded as 1088, and small sizes are rounded."""


def map_fault(
    name: str, recipe: Recipe, facts: Facts, pixels: tuple[int, int] | None
) -> str | None:
    """Say why a side input cannot be aligned to the frames of a stage, or return nothing.

    Args:
        name: Name of the map.
        recipe: The recipe, for the size of the source.
        facts: Facts of source and maps.
        pixels: Height and width of the stage's frames; nothing for a reference of any shape.
    """
    found = facts.maps.get(name)
    if found is None:
        known = ", ".join(sorted(facts.maps)) or "none"
        return f"unknown map {name!r}; the recipe's maps are: {known}"
    wanted = facts.source.info.num_frames
    if found.num_frames not in (1, wanted):
        return (
            f"map {name!r} has {found.num_frames} frames, the source {wanted};"
            " give one for each frame of the whole source, or a single image"
        )
    if pixels is not None and _fit(found, recipe, facts, pixels) is None:
        info = facts.source.info
        return (
            f"map {name!r} is {found.width}x{found.height}; the source is"
            f" {info.display_width}x{info.display_height} and is edited at {pixels[1]}x{pixels[0]};"
            " give the map the shape of one of them"
        )
    return None


def map_fields(name: str, recipe: Recipe, facts: Facts, pixels: tuple[int, int]) -> dict[str, Any]:
    """Return what decides the pixels of a side input, for the key: content, size and fit."""
    found = facts.maps[name]
    return {
        "digest": found.digest,
        "size": list(pixels),
        "fit": _fit(found, recipe, facts, pixels),
        "av": facts.machine.av,
    }


def reference_fields(name: str, facts: Facts) -> dict[str, Any]:
    """Return what decides the pixels of a reference image; its model decides the size."""
    return {"digest": facts.maps[name].digest, "av": facts.machine.av}


def _fit(found: MapFacts, recipe: Recipe, facts: Facts, pixels: tuple[int, int]) -> Fit | None:
    """Choose how a map is resized: as the source where it has its shape, else as it is."""
    height, width = pixels
    info, size = facts.source.info, recipe.source.size
    own = width / height
    fit: Fit = "stretch"
    source, read = info.display_width / info.display_height, own
    if size != "source":
        source, read, fit = float(info.display_aspect_ratio), size.width / size.height, size.fit
    shape = found.width / found.height
    # What was cropped or padded with the source is no longer so once the frame has grown a border.
    if _close(shape, source) and _close(own, read):
        return fit
    return "stretch" if _close(shape, own) else None


def _close(first: float, second: float) -> bool:
    return abs(first / second - 1) <= MAX_ASPECT_ERROR
