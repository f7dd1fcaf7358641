"""A bare script's way through a plan: the same stages in the same order, every array in memory."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks import publish
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.group import STAGES
from latentloom.tasks.loading import PlanModels, use_profile


class Memory:
    """Chunks in a dictionary: what a bare script would do."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.compute_seconds = defaultdict[str, float](float)
        """By stage, inputs being there."""

    def read(self, key: str) -> Any:
        """Return a chunk."""
        return self.arrays[key]


def warm_up(plan: Plan) -> None:
    """Make the first chunk of every stage, so that the models are loaded."""
    use_profile(plan)
    memory = Memory()
    for stage in plan.stages[1:-1]:
        compute(memory, plan, stage.name, 0, PlanModels(plan))


def run_bare(plan: Plan, output: Path) -> dict[str, float]:
    """Make every chunk in order, in memory, and write the video; returns seconds of computing by stage."""
    use_profile(plan)
    memory, models = Memory(), PlanModels(plan)
    for stage in plan.stages:
        for index in range(len(stage.chunks)):
            compute(memory, plan, stage.name, index, models)
    publish.join(cast(Store, memory), plan, output)
    return memory.compute_seconds


def compute(memory: Memory, plan: Plan, name: str, index: int, models: PlanModels) -> None:
    """Make one chunk, and what it reads where that is missing."""
    stage = plan.by_name[name]
    for upstream, read in zip(stage.inputs, stage.chunks[index].reads, strict=True):
        for other in read:
            if plan.by_name[upstream].chunks[other].key not in memory.arrays:
                compute(memory, plan, upstream, other, models)
    bare = stage.model_copy(update={"checkpoints": ()})
    chunk = OpenChunk(cast(Store, memory), plan, bare, stage.chunks[index], models)
    chunk.read_ahead()
    begun = time.perf_counter()
    memory.arrays[stage.chunks[index].key] = STAGES[stage.op](chunk)
    memory.compute_seconds[name] += time.perf_counter() - begun
