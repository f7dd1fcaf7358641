"""Order what is needed into steps. Integers only.

A stage is one step of as many task groups as there are workers, or more. A stage that reads transient frames
takes turns with the stage that makes them, so that only a few segments of frames lie in the store at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from latentloom.flows.need import Need
from latentloom.schemas.plan import Plan, PlannedStage

MAX_TASK_RUNS = 200


@dataclass(frozen=True)
class Step:
    """Task groups of one stage that may run side by side; the next step waits for all of them."""

    stage: str
    groups: tuple[tuple[int, ...], ...]


def plan_steps(plan: Plan, need: Need, *, workers: int) -> Iterator[Step]:
    """Yield the steps that compute what is needed, in an order in which inputs come first.

    Args:
        plan: The plan.
        need: Indices of needed chunks, by stage.
        workers: How many task groups run at once.
    """
    active = [stage for stage in plan.stages if need.get(stage.name)]
    share = max(workers, MAX_TASK_RUNS // max(1, 2 * len(active)))
    made: dict[str, set[int]] = {}
    for stage in active:
        if not stage.transient:
            yield from _steps_of(plan, stage, need[stage.name], need, made, workers, share)


def _steps_of(
    plan: Plan,
    stage: PlannedStage,
    indices: Sequence[int],
    need: Need,
    made: dict[str, set[int]],
    workers: int,
    share: int,
) -> Iterator[Step]:
    feeders = [
        (position, plan.by_name[name])
        for position, name in enumerate(stage.inputs)
        if plan.by_name[name].transient and need.get(name)
    ]
    if not feeders:
        yield Step(stage.name, _split(indices, share if len(indices) > workers else workers))
        return
    turns = max(1, share // workers)
    for turn in _split(indices, turns):
        for position, feeder in feeders:
            done = made.setdefault(feeder.name, set())
            wanted = {i for index in turn for i in stage.chunks[index].reads[position]}
            missing = sorted((wanted & set(need[feeder.name])) - done)
            done.update(missing)
            if missing:
                yield from _steps_of(plan, feeder, missing, need, made, workers, workers)
        yield Step(stage.name, _split(turn, workers))


def _split(indices: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """Cut indices into at most ``parts`` consecutive groups of nearly equal length."""
    parts = max(1, min(parts, len(indices)))
    bounds = [len(indices) * part // parts for part in range(parts + 1)]
    return tuple(tuple(indices[a:b]) for a, b in pairwise(bounds) if a < b)
