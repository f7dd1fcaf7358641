"""Say what is to be computed, like make: a chunk is needed only if something needed downstream misses.

Pure. It is asked again whenever a chunk that was there has vanished.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.schemas.run import StopPoint

Look = Callable[[Collection[str]], AbstractSet[str]]
"""Says which of some keys have a record."""


class Need(dict[str, list[int]]):
    """For each stage that is stored, by name in plan order, the ascending indices of needed chunks."""

    def __init__(
        self, chunks: Mapping[str, list[int]], steps: Mapping[str, list[StepNeed]]
    ) -> None:
        """Keep both parts of what is needed."""
        super().__init__(chunks)
        self.steps: Mapping[str, list[StepNeed]] = steps
        """The steps still to be taken by stages whose windows meet at every step, in order."""

    def num_computed(self, name: str) -> int:
        """Return how many chunks a stage computes, windows after each step counted one by one."""
        if name in self.steps:
            return sum(len(step.windows) for step in self.steps[name])
        return len(self[name])


@dataclass(frozen=True)
class StepNeed:
    """Windows that have to be taken to one step."""

    step: int
    windows: list[int] = field(repr=False)


def no_records(keys: Collection[str]) -> AbstractSet[str]:
    """Stand for an empty store."""
    return frozenset[str]()


def find_need(
    plan: Plan, present: Collection[str], *, published: bool, look: Look = no_records
) -> Need:
    """Find the chunks that have to be computed.

    Args:
        plan: The plan.
        present: Keys of its chunks that have a record.
        published: Whether its video is in place already.
        look: Asked, where windows meet at every step, which of them stand after a step.
    """
    read_by_someone = {name for stage in plan.stages for name in stage.inputs}
    wanted: dict[str, set[int]] = {}
    steps: dict[str, list[StepNeed]] = {}
    for stage in reversed(plan.stages):
        demanded = wanted.get(stage.name, set())
        is_wanted = stage.kept or (stage.name not in read_by_someone and stage.stored)
        if is_wanted and not (published and stage.op == "encode_video"):
            demanded = set(range(len(stage.chunks)))
        missing = _missing(stage, demanded, present)
        wanted[stage.name] = missing
        if stage.steps:
            steps[stage.name] = list(_steps_to(stage, missing, look))[::-1]
            missing = _beginning(stage, steps[stage.name])
        _demand_inputs(stage, missing, wanted)
    chunks = {stage.name: sorted(wanted[stage.name]) for stage in plan.stages if stage.stored}
    return Need(chunks, steps)


def find_need_until(
    plan: Plan,
    present: Collection[str],
    until: StopPoint,
    *,
    standing: Collection[int],
    look: Look = no_records,
) -> Need:
    """Find what has to be computed until every chunk of one stage that is needed stands at a step.

    Args:
        plan: The plan.
        present: Keys of its chunks that have a record.
        until: The stage, and the step.
        standing: Indices of those of its chunks that stand there already.
        look: Asked, where windows meet at every step, which of them stand after a step.
    """
    needed = find_need(plan, present, published=False, look=look)
    wanted = {until.stage: set(needed[until.stage]) - set(standing)}
    steps: dict[str, list[StepNeed]] = {}
    for stage in reversed(plan.stages):
        if stage.name not in wanted:
            continue
        missing = _missing(stage, wanted[stage.name], present)
        wanted[stage.name] = missing
        if stage.steps:
            last = until.step if stage.name == until.stage else stage.steps[-1]
            taken = list(_steps_to(stage, missing, look))[::-1]
            steps[stage.name] = [step for step in taken if step.step <= last]
            missing = _beginning(stage, steps[stage.name])
        _demand_inputs(stage, missing, wanted)
    chunks = {
        stage.name: sorted(wanted.get(stage.name, ())) for stage in plan.stages if stage.stored
    }
    return Need(chunks, steps)


def _missing(stage: PlannedStage, demanded: Collection[int], present: Collection[str]) -> set[int]:
    missing = {index for index in demanded if stage.chunks[index].key not in present}
    if stage.in_order:
        for index in sorted(missing, reverse=True):
            before = stage.before(index)
            while before is not None and before not in missing:
                if stage.chunks[before].key in present:
                    break
                missing.add(before)
                before = stage.before(before)
    return missing


def _steps_to(stage: PlannedStage, missing: Collection[int], look: Look) -> Iterator[StepNeed]:
    """Yield what missing windows take, the last step first, back to a step that all they need stands at."""
    wanted = sorted(missing)
    for row in reversed(range(len(stage.steps))):
        if not wanted:
            return
        yield StepNeed(stage.steps[row], wanted)
        if row:
            lacking = _lacking(stage, stage.steps[row - 1], wanted, look)
            # An hour's video has hundreds of thousands of windows and steps: equal lists are one.
            wanted = wanted if lacking == wanted else lacking


def _lacking(stage: PlannedStage, step: int, readers: Collection[int], look: Look) -> list[int]:
    """Return the windows that readers blend after a step and that have no record there."""
    near = sorted({index for reader in readers for index in stage.neighbours(reader)})
    keys = [stage.key_at(index, step) for index in near]
    there = look(keys)
    return [index for index, key in zip(near, keys, strict=True) if key not in there]


def _beginning(stage: PlannedStage, steps: list[StepNeed]) -> set[int]:
    """Return the windows that begin anew, and so read the stage's inputs."""
    return set(steps[0].windows) if steps and steps[0].step == stage.steps[0] else set()


def _demand_inputs(
    stage: PlannedStage, missing: Collection[int], wanted: dict[str, set[int]]
) -> None:
    for position, name in enumerate(stage.inputs):
        upstream = wanted.setdefault(name, set())
        for index in missing:
            upstream.update(stage.chunks[index].reads[position])


def deletable(plan: Plan, stage: PlannedStage, present: AbstractSet[str]) -> list[int]:
    """List the chunks of a transient stage that nobody needs any more."""
    if not stage.transient:
        return []
    return [
        index
        for index, chunk in enumerate(stage.chunks)
        if chunk.key in present and present >= set(plan.readers(stage.name, index))
    ]
