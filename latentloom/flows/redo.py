"""Write an override for a range of frames into a recipe; records are never changed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

from latentloom.errors import UsageError
from latentloom.flows.keys import draws_noise
from latentloom.schemas.load import with_overrides
from latentloom.schemas.plan import Plan
from latentloom.schemas.recipe import Recipe, Redo

_FRAMES = re.compile(r"^(\d+):(\d+)$")


def with_redo(plan: Plan, *, frames: str, seed: int | None, overrides: Sequence[str]) -> Recipe:
    """Return a plan's recipe with one more range in which other values hold.

    Args:
        plan: The plan of the run that is redone.
        frames: ``A:B``, absolute source frames, half open.
        seed: Seed for the range; drawn where a stage draws noise and nothing is overridden.
        overrides: ``key=value`` on stages and prompts.

    Raises:
        UsageError: If the range holds no frame of the cut, or nothing would come out differently.
    """
    match = _FRAMES.match(frames)
    if match is None:
        raise UsageError(f"--frames {frames!r} is not A:B, such as 48:96")
    start, stop = int(match[1]), int(match[2])
    if not plan.start <= start < stop <= plan.stop:
        raise UsageError(
            f"--frames {frames} does not lie in the run's frames {plan.start}:{plan.stop}"
        )
    with_overrides(plan.recipe, overrides)
    noisy = any(draws_noise(stage) for stage in plan.recipe.stages)
    if not noisy and (seed is not None or not overrides):
        raise UsageError(
            "no stage of this recipe draws noise, so another seed changes nothing;"
            " override a value, such as prompts.target=... or stages.fuse.alpha=0.5"
        )
    if seed is None and noisy:
        seed = secrets.randbits(31)
    entry = Redo(frames=(start, stop), seed=seed, overrides=tuple(overrides))
    return plan.recipe.model_copy(update={"redo": (*plan.recipe.redo, entry)})
