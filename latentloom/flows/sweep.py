"""Delete what a plan needs no more: transient frames, checkpoints in chunks, windows between steps."""

from __future__ import annotations

from collections.abc import Collection

from latentloom.flows.need import deletable
from latentloom.flows.until import checkpoint_keys
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.storage.store import Store

STEPS_KEPT = 2
"""Whole steps that stay while the next one is taken: what is damaged in one is made again from the other."""


def sweep(store: Store, plan: Plan, *, standing: str | None = None) -> None:
    """Delete at the end of a run what one that was killed right behind a chunk left.

    Args:
        store: The store.
        plan: The plan.
        standing: The stage in which the run was told to stop, whose windows are not done.
    """
    _sweep_checkpoints(store, plan)
    for stage in plan.stages:
        if stage.steps and stage.name != standing:
            _delete_steps(store, stage, stage.steps[-1 - STEPS_KEPT : -1])
    _sweep_transient(store, plan)


def sweep_before(store: Store, stage: PlannedStage, step: int) -> None:
    """Delete what a run that was killed between a step and its sweep has left, before another goes on.

    The step before the one to be taken and the step before that stay.
    """
    row = stage.steps.index(step)
    _delete_steps(store, stage, stage.steps[: max(0, row - STEPS_KEPT)])


def sweep_behind(store: Store, stage: PlannedStage, step: int) -> None:
    """Delete what windows were before a step that is complete, all but the step before it.

    Behind the last step nothing stays, whichever steps a killed run has left.
    """
    row = stage.steps.index(step)
    first = 0 if step == stage.steps[-1] else max(0, row - STEPS_KEPT)
    last = row if step == stage.steps[-1] else max(0, row - 1)
    _delete_steps(store, stage, stage.steps[first:last])


def _delete_steps(store: Store, stage: PlannedStage, steps: Collection[int]) -> None:
    for step in steps:
        for key in store.present(stage.keys_at(step)):
            store.delete(key)


def _sweep_checkpoints(store: Store, plan: Plan) -> None:
    chunks = checkpoint_keys(store, plan)
    left = store.present(chunks)
    done = store.present({chunks[key] for key in left})
    for key in left:
        if chunks[key] in done:
            store.delete(key)


def _sweep_transient(store: Store, plan: Plan) -> None:
    names = {stage.name for stage in plan.stages if stage.transient}
    if not names:
        return
    present = store.present(
        [
            chunk.key
            for stage in plan.stages
            if stage.name in names or names & set(stage.inputs)
            for chunk in stage.chunks
        ]
    )
    for stage in plan.stages:
        for index in deletable(plan, stage, present):
            store.delete(stage.chunks[index].key)
