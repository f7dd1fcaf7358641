"""Say what is to be computed, like make: a chunk is needed only if something needed downstream misses.

Pure. It is asked again whenever a chunk that was there has vanished.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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
        is_leaf = stage.name not in read_by_someone and stage.stored
        if is_leaf and not (published and stage.op == "encode_video"):
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


def last_readers(plan: Plan, stage: PlannedStage) -> dict[int, list[str]]:
    """For each chunk of a stage, list the keys of the chunks that read it."""
    readers: dict[int, list[str]] = {index: [] for index in range(len(stage.chunks))}
    for reader in plan.stages:
        for position, name in enumerate(reader.inputs):
            if name != stage.name:
                continue
            for chunk in reader.chunks:
                for index in chunk.reads[position]:
                    readers[index].append(chunk.key)
    return readers


def deletable(plan: Plan, stage: PlannedStage, present: Collection[str]) -> list[int]:
    """List the chunks of a transient stage that nobody needs any more."""
    if not stage.transient:
        return []
    readers = last_readers(plan, stage)
    return [
        index
        for index, keys in readers.items()
        if stage.chunks[index].key in present and all(key in present for key in keys)
    ]


Need = Mapping[str, list[int]]
