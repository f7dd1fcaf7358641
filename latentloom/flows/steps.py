"""Order what is needed into steps. Integers only.

A stage is one step of a few task groups for every worker: enough to share the work out evenly, few enough
that Prefect's bookkeeping (about 0.1 s a task run) does not count. Where windows meet at every denoising
step, each of those is a step of one group for every worker; windows that read the one before them are shared
out by shots. Transient frames have no step of their own: the task that reads them makes them, chunk by chunk,
and deletes them behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from latentloom.flows.need import Need
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.schemas.run import StopPoint

GROUPS_PER_WORKER = 4
MAX_TASK_RUNS = 200


@dataclass(frozen=True)
class Step:
    """Task groups of one stage that may run side by side; the next step waits for all of them."""

    stage: str
    groups: tuple[tuple[int, ...], ...]
    denoising_step: int | None = None
    """Where windows meet at every step: the step that the groups take theirs to."""
    inputs_made: bool = False
    """Whether the transient frames that it reads are there already."""
    beside: Step | None = None
    """Groups of another stage that run at the same time."""
    until_step: int | None = None
    """Where windows do not meet: steps of the stage after which its chunks are to stop."""

    @property
    def parts(self) -> tuple[Step, ...]:
        """Return it and what runs beside it."""
        return (self,) if self.beside is None else (self, self.beside)


def plan_steps(
    plan: Plan, need: Need, *, workers: int, until: StopPoint | None = None
) -> Iterator[Step]:
    """Yield the steps that compute what is needed, in an order in which inputs come first.

    Args:
        plan: The plan.
        need: Indices of needed chunks, by stage.
        workers: How many task groups run at once.
        until: Where the run is to stop; that stage has a step of its own, even if its frames are transient.
    """
    last = None if until is None else until.stage
    active = [
        stage
        for stage in plan.stages
        if need.get(stage.name) and (not stage.transient or stage.name == last)
    ]
    most = max(workers, MAX_TASK_RUNS // max(1, len(active)))
    groups = min(workers * GROUPS_PER_WORKER, most)
    for stage in active:
        step = until.step if until is not None and stage.name == last else None
        if stage.steps:
            for wanted in need.steps[stage.name]:
                yield Step(stage.name, split(wanted.windows, workers), wanted.step)
        else:
            runs = _runs(stage, need[stage.name])
            parts = tuple(_joined(runs, part) for part in split(range(len(runs)), groups))
            yield Step(stage.name, parts, until_step=step)


def _runs(stage: PlannedStage, indices: Sequence[int]) -> list[list[int]]:
    """Cut indices where the order does not matter: everywhere, but not between windows that hand over."""
    runs: list[list[int]] = []
    for index in indices:
        if stage.in_order and runs and stage.before(index) == runs[-1][-1]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _joined(runs: Sequence[Sequence[int]], part: Sequence[int]) -> tuple[int, ...]:
    return tuple(index for run in part for index in runs[run])


def split(indices: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """Cut indices into at most ``parts`` consecutive groups of nearly equal length."""
    parts = max(1, min(parts, len(indices)))
    bounds = [len(indices) * part // parts for part in range(parts + 1)]
    return tuple(tuple(indices[a:b]) for a, b in pairwise(bounds) if a < b)
