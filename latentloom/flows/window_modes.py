"""What the mode of a window rule asks of stages, and what it adds to a plan. Pure.

independent: nothing. co_denoise: the windows of every step have keys of their own (``schemas.step_keys``).
handoff: the key of a window covers the window before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Final

from latentloom.flows.bound import BoundStage
from latentloom.flows.estimate import CHUNK_OVERHEAD_BYTES
from latentloom.ops.windows import Range
from latentloom.schemas.fusion import FuseStage
from latentloom.schemas.plan import PlannedChunk, PlannedStage
from latentloom.schemas.stage import WindowRule, steps_taken
from latentloom.schemas.stages import InvertStage, SmoothStage, Stage
from latentloom.schemas.step_keys import StepKeys

_OPS: Final[dict[str, tuple[str, ...]]] = {
    "co_denoise": ("invert", "fuse", "smooth"),
    "handoff": ("smooth", "upsample"),
}
"""Ops that a mode is for; independent is for all."""


def same_plan(rule: WindowRule, other: WindowRule | None) -> bool:
    """Tell whether two rules cut the same windows."""
    return other is not None and (rule.size, rule.overlap) == (other.size, other.overlap)


def mode_faults(
    stage: Stage, rule: WindowRule, inherited: Mapping[str, WindowRule | None]
) -> Iterator[str]:
    """Say what of a window rule does not fit a stage.

    Args:
        stage: A stage that runs a video model.
        rule: Its rule, resolved.
        inherited: Rules of the stages whose inverted latents it reads.
    """
    if rule.mode == "independent":
        return
    if stage.op not in _OPS[rule.mode]:
        instead = "co_denoise" if rule.mode == "handoff" else "independent"
        yield (
            f"windows.mode {rule.mode} is for {', '.join(_OPS[rule.mode])};"
            f" give this stage windows of its own, mode {instead} and the same size and overlap"
        )
    if rule.overlap == 0:
        yield f"windows.mode {rule.mode} needs windows that overlap; set windows.overlap above 0"
    if isinstance(stage, InvertStage) and not stage.asks_model:
        yield (
            f"noise_start {stage.noise_start} inverts nothing, so there is no step after which windows could"
            f" meet (windows.mode {rule.mode}); name an image model, which gives the same noise"
        )
    for name, other in inherited.items():
        if other is not None and other.mode == "independent":
            yield (
                f"windows.mode {rule.mode} begins with one latent for each frame, but {name!r} inverts"
                " every window alone, which gives two where windows overlap; give it mode co_denoise"
                " too, or invert with an image model"
            )


def is_read_as_it_is(stage: PlannedStage, windows: WindowRule) -> bool:
    """Tell whether a reader with these windows takes a stage's windows one by one, not blended.

    Latents of windows that met are one for each frame, which is what a blend gives.
    """
    rule = stage.variants[0].fields.get("windows")
    return (
        rule is not None
        and rule["mode"] == "independent"
        and same_plan(windows, WindowRule.model_validate(rule))
    )


def handed_over(
    windows: WindowRule | None, before: Sequence[PlannedChunk], span: Range
) -> list[list[str]]:
    """Return the keys of what a window reads of its own stage: the window before it in its shot."""
    if windows is None or windows.mode != "handoff" or not before or before[-1].stop <= span[0]:
        return []
    return [[before[-1].key]]


def meets_at_every_step(bound: BoundStage) -> bool:
    """Tell whether the overlaps of a stage's windows are averaged after every step."""
    mode = None if bound.windows is None else bound.windows.mode
    return mode == "co_denoise" and bound.stage.op in _OPS["co_denoise"]


def with_steps(stage: PlannedStage, bound: BoundStage) -> PlannedStage:
    """Plan the steps of a stage whose windows meet, or the order of one whose windows hand over."""
    if bound.windows is not None and bound.windows.mode == "handoff":
        return stage.model_copy(update={"in_order": True})
    if not meets_at_every_step(bound):
        return stage
    steps = _steps(bound.stage)
    bases = tuple(chunk.key for chunk in stage.chunks)
    keys = StepKeys(bases, *stage.bounds)
    chunks = tuple(
        replace(chunk, key=keys.key(len(steps) - 1, index))
        for index, chunk in enumerate(stage.chunks)
    )
    frames = sum(chunk.num_frames for chunk in chunks) * prod(stage.frame_shape)
    return stage.model_copy(
        update={
            "steps": steps,
            "bases": bases,
            "chunks": chunks,
            "step_bytes": tuple(
                4 * _num_states(bound.stage, step) * frames + len(chunks) * CHUNK_OVERHEAD_BYTES
                for step in steps[:-1]
            ),
        }
    )


def _steps(stage: Stage) -> tuple[int, ...]:
    assert isinstance(stage, InvertStage | FuseStage | SmoothStage)
    assert stage.num_inference_steps is not None
    total, strength = stage.num_inference_steps, stage.strength
    taken = total if strength is None else steps_taken(total, strength)
    if isinstance(stage, InvertStage):
        return tuple(range(stage.noise_start + 1, taken + 1))
    return tuple(range(total - taken + 1, total + 1))


def _num_states(stage: Stage, step: int) -> int:
    """Return how many latents of a frame there are after a step: one for each source until they are mixed."""
    if not isinstance(stage, FuseStage) or stage.num_inference_steps is None:
        return 1
    mixed = step > stage.first_mixed_step(stage.num_inference_steps)
    return 1 if mixed else len(stage.sources)
