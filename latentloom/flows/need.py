"""Say what is to be computed, like make: a chunk is needed only if something needed downstream misses.

Pure. It is asked again whenever a chunk that was there has vanished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet

from latentloom.schemas.plan import Plan, PlannedStage


def find_need(plan: Plan, present: Collection[str], *, published: bool) -> dict[str, list[int]]:
    """Find the chunks that have to be computed.

    Args:
        plan: The plan.
        present: Keys of its chunks that have a record.
        published: Whether its video is in place already.

    Returns:
        For each stage that is stored, by name in plan order, the ascending indices of needed chunks.
    """
    read_by_someone = {name for stage in plan.stages for name in stage.inputs}
    wanted: dict[str, set[int]] = {}
    for stage in reversed(plan.stages):
        demanded = wanted.get(stage.name, set())
        is_wanted = stage.kept or (stage.name not in read_by_someone and stage.stored)
        if is_wanted and not (published and stage.op == "encode_video"):
            demanded = set(range(len(stage.chunks)))
        missing = {index for index in demanded if stage.chunks[index].key not in present}
        wanted[stage.name] = missing
        _demand_inputs(stage, missing, wanted)
    return {stage.name: sorted(wanted[stage.name]) for stage in plan.stages if stage.stored}


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


Need = Mapping[str, list[int]]
