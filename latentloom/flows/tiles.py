"""Check a stage's tiles against its models, and drop tiles that hold a whole frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import PlannedStage
from latentloom.schemas.stages import (
    DecodeStage,
    EncodeStage,
    Stage,
    TiledStage,
)


def tiling_fault(stage: Stage, facts: Facts) -> str | None:
    """Return what is wrong with a stage's tiles, or None: a model takes whole multiples of its factor."""
    if not isinstance(stage, TiledStage) or stage.tiling is None:
        return None
    model = facts.models[stage.model]
    unit = model.downscale
    if not isinstance(stage, EncodeStage | DecodeStage):
        unit *= model.latent_multiple
    tiling = stage.tiling
    if tiling.size % unit:
        lower = tiling.size // unit * unit
        return (
            f"tiling.size {tiling.size} must be a multiple of {unit}, which model {stage.model!r} takes;"
            f" choose {lower or unit} or {lower + unit}"
        )
    if tiling.overlap is not None and tiling.overlap % model.downscale:
        return (
            f"tiling.overlap {tiling.overlap} must be a multiple of {model.downscale}, the pixels of a"
            f" latent of model {stage.model!r}"
        )
    return None


def settle_tiling(stage: Stage, frame_shape: Sequence[int], facts: Facts) -> Stage:
    """Return a stage without tiling if one tile holds its frames: then it changes no result and no key."""
    if not isinstance(stage, TiledStage) or stage.tiling is None:
        return stage
    if stage.produces == "frames":
        longest = max(frame_shape[:2])
    else:
        longest = max(frame_shape[1:]) * facts.models[stage.model].downscale
    if stage.tiling.size < longest:
        return stage
    return cast("Stage", stage.model_copy(update={"tiling": None}))


def tiling_hint(stage: PlannedStage) -> str:
    """Return what tells of tiling where a stage could have it, for a list of what to do."""
    params = stage.variants[0].params
    return f" give {stage.name!r} tiling," if "tiling" in params and not params["tiling"] else ""
