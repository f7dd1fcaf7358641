"""Order what is needed into steps. Integers only.

A stage is one step of a few task groups for every worker: enough to share the work out evenly, few enough
that Prefect's bookkeeping (about 0.1 s a task run) does not count. Transient frames have no step of
their own: the task that reads them makes them, chunk by chunk, and deletes them behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from latentloom.flows.need import Need
from latentloom.schemas.plan import Plan

GROUPS_PER_WORKER = 4
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
    active = [stage for stage in plan.stages if need.get(stage.name) and not stage.transient]
    most = max(workers, MAX_TASK_RUNS // max(1, len(active)))
    groups = min(workers * GROUPS_PER_WORKER, most)
    for stage in active:
        yield Step(stage.name, _split(need[stage.name], groups))


def _split(indices: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """Cut indices into at most ``parts`` consecutive groups of nearly equal length."""
    parts = max(1, min(parts, len(indices)))
    bounds = [len(indices) * part // parts for part in range(parts + 1)]
    return tuple(tuple(indices[a:b]) for a, b in pairwise(bounds) if a < b)
