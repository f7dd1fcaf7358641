"""What the published video is: its path, how it is encoded, and whether it is in place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath

from latentloom.errors import RecipeError
from latentloom.schemas.base import digest
from latentloom.schemas.facts import Facts
from latentloom.schemas.media import EncodeSettings, VideoInfo
from latentloom.schemas.plan import PlannedStage
from latentloom.schemas.recipe import Recipe

_MAX_RATE_DENOMINATOR = 100_000
_FIELD = re.compile(r"\{([^{}]*)\}")


def output_path(recipe: Recipe, facts: Facts) -> str | None:
    """Fill in ``{stem}`` and ``{name}``.

    Raises:
        RecipeError: If the template names something else, leads out of its folder, or to the source.
    """
    if recipe.output is None:
        return None
    known = {"stem": PurePosixPath(facts.source.uri).stem, "name": recipe.name}
    path = fill_in(recipe.output.uri, known)
    if Path(path).resolve() == Path(facts.source.path).resolve():
        raise RecipeError(f"output.uri: {path} is the source; choose another path")
    return path


def fill_in(template: str, known: Mapping[str, str], *, nested: Sequence[str] = ()) -> str:
    """Fill in a path's fields and nothing else: ``str.format`` also reads attributes, and pads to any width.

    Args:
        template: Path with ``{field}`` in it.
        known: Value of each field there may be.
        nested: Fields whose values may hold folders.

    Raises:
        RecipeError: If the template names something else, or leads out of its folder.
    """
    unknown = sorted(set(_FIELD.findall(template)) - set(known))
    if unknown:
        fields = ", ".join(f"{{{field}}}" for field in unknown)
        listed = ", ".join(f"{{{field}}}" for field in sorted(known))
        raise RecipeError(f"output.uri: unknown {fields}; only {listed} are known")
    for field, value in known.items():
        alone = field not in nested and "/" in value
        if f"{{{field}}}" in template and (alone or value in ("", ".", "..")):
            raise RecipeError(
                f"output.uri: {{{field}}} is {value!r} here; give the path without it"
            )
    path = _FIELD.sub(lambda match: known[match[1]], template)
    parts = PurePosixPath(template).parts
    fixed = next((index for index, part in enumerate(parts) if _FIELD.search(part)), len(parts) - 1)
    folder = Path(*parts[:fixed]).resolve()
    if not Path(path).parent.resolve().is_relative_to(folder):
        raise RecipeError(f"output.uri: {path} leads out of {folder}; choose another path")
    return path


def encode_settings(
    recipe: Recipe, facts: Facts, info: VideoInfo, size: tuple[int, int] | None = None
) -> EncodeSettings:
    """Return the encoder's settings.

    Args:
        recipe: The recipe; it must have an output.
        facts: Facts of the source: its bit depth.
        info: Time base, rate and colour of what is made.
        size: Height and width of the frames.
    """
    output = recipe.output
    if output is None:
        raise RecipeError("output: missing; there is nothing to encode")
    height, width = size or (info.display_height, info.display_width)
    rate = Fraction(info.frame_rate).limit_denominator(_MAX_RATE_DENOMINATOR)
    rated = output.codec in ("h264", "h265")
    own_size = recipe.source.size == "source"
    return EncodeSettings(
        codec=output.codec,
        width=width,
        height=height,
        time_base=info.time_base,
        frame_rate=(rate.numerator, rate.denominator),
        high_bit_depth=keeps_high_bit_depth(recipe, facts),
        crf=output.crf if rated else None,
        preset=output.preset if rated else None,
        tune=output.tune,
        profile=output.profile,
        pix_fmt=output.pix_fmt,
        threads=output.threads,
        color=info.color.resolve(info.display_height),
        sample_aspect_ratio=info.output_aspect(None, None) if own_size else (1, 1),
    )


def keeps_high_bit_depth(recipe: Recipe, facts: Facts) -> bool:
    """Tell whether frames are uint16: a source above 8 bits, and no 8-bit pixel format asked for."""
    pix_fmt = recipe.output.pix_fmt if recipe.output is not None else None
    deep = pix_fmt is None or any(mark in pix_fmt for mark in ("9", "10", "12", "14", "16"))
    return facts.source.info.bit_depth > 8 and deep


def segment_frames(recipe: Recipe, info: VideoInfo) -> int:
    """Return the frames of a segment; the source's mean rate sets it, so a cut does not move it."""
    if recipe.output is None:
        raise RecipeError("output: missing; there is nothing to encode")
    return max(1, round(recipe.output.segment_seconds * info.frame_rate))


def plan_digest(recipe: Recipe, facts: Facts, stages: list[PlannedStage]) -> str:
    """Hash what a plan results in: its lasting chunks, and how the video is joined."""
    leaves = {stage.name for stage in stages} - {name for s in stages for name in s.inputs}
    return digest(
        {
            "chunks": {
                stage.name: [chunk.key for chunk in stage.chunks]
                for stage in stages
                if stage.stored
            },
            "leaves": sorted(leaves),
            "source": facts.source.digest,
            "audio": recipe.output.audio if recipe.output else None,
            "container": PurePosixPath(recipe.output.uri).suffix if recipe.output else None,
        }
    )
