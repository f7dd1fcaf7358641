"""Let workers without a device encode the frames that workers with one make: frames pass through the store.

A step whose frames are made by a model becomes a row of steps. While some segments are encoded, the frames of
the next ones are made; so the store holds the frames of two batches of segments, and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from latentloom.flows.routing import needs_device
from latentloom.flows.steps import MAX_TASK_RUNS, Step, split
from latentloom.schemas.plan import Plan


def hand_over(plan: Plan, steps: Iterable[Step], *, workers: int, spare: int) -> Iterator[Step]:
    """Yield the steps, with those that are shared between both kinds of workers taken apart.

    Args:
        plan: The plan.
        steps: From ``plan_steps``.
        workers: Task groups that run at once.
        spare: Of these, on workers without a device; steps stay as they are if there are none.
    """
    for step in steps:
        source = _made_for(plan, step.stage)
        if spare and source is not None:
            yield from _in_turn(plan, step, source, max(1, workers - spare), spare)
        else:
            yield step


def _made_for(plan: Plan, name: str) -> str | None:
    """Return the stage that makes frames with a model for a stage that uses none."""
    stage = plan.by_name[name]
    made = [read for read in stage.inputs if plan.by_name[read].transient]
    return made[0] if not stage.models and len(made) == 1 and needs_device(plan, made[0]) else None


def _in_turn(plan: Plan, step: Step, source: str, makers: int, spare: int) -> Iterator[Step]:
    stage = plan.by_name[step.stage]
    position = stage.inputs.index(source)
    indices = [index for group in step.groups for index in group]
    num_batches = min(-(-len(indices) // spare), max(1, MAX_TASK_RUNS // (makers + spare)))
    made: set[int] = set()
    ready: tuple[int, ...] = ()
    for batch in (*split(indices, num_batches), ()):
        frames = sorted({read for i in batch for read in stage.chunks[i].reads[position]} - made)
        made.update(frames)
        making = Step(source, split(frames, makers)) if frames else None
        if ready:
            yield Step(step.stage, split(ready, spare), inputs_made=True, beside=making)
        elif making is not None:
            yield making
        ready = batch
