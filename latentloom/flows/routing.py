"""Which machines a stage may run on, said in tags: resources of Dask's workers, tags of Prefect's task runs.

A stage that uses a model on a GPU, or reads frames that one makes for it, asks for the resource ``GPU``.
Whoever runs the flow may route more stages in the config file, on a CPU too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from latentloom.schemas.plan import Plan

GPU = "GPU"
"""Resource of a worker that has a device for itself."""


@dataclass(frozen=True)
class Route:
    """Where the task groups of a stage may run."""

    resources: frozenset[str]
    """Names of Dask resources; a task group takes one of each."""
    on_device: bool
    """Whether they use the plan's device."""
    tags: tuple[str, ...]
    """Of its Prefect task runs: ``op:<op>``, ``device:<kind>`` and ``machine:<resource>``."""


def needs_device(plan: Plan, name: str) -> bool:
    """Tell whether a stage's task groups call a model: their own, or those of transient frames they read."""
    stage = plan.by_name[name]
    return bool(stage.models) or any(
        plan.by_name[read].transient and needs_device(plan, read) for read in stage.inputs
    )


def route(plan: Plan, name: str, routes: Mapping[str, str], *, inputs_made: bool = False) -> Route:
    """Say where a stage may run.

    Args:
        plan: The plan.
        name: The stage.
        routes: Resource by name of a stage or op, from the settings; the name goes before the op.
        inputs_made: Whether the transient frames that it reads are there already.
    """
    stage = plan.by_name[name]
    needs = bool(stage.models) or (not inputs_made and needs_device(plan, name))
    device = plan.facts.machine.device if needs else "cpu"
    asked = routes.get(stage.name, routes.get(stage.op))
    resources = {GPU} if device == "cuda" else set()
    resources |= {asked} if asked else set()
    tags = [f"op:{stage.op}", f"device:{device}", *(f"machine:{r}" for r in sorted(resources))]
    return Route(frozenset(resources), needs, tuple(tags))


def resources_needed(
    plan: Plan, stages: Iterable[str], routes: Mapping[str, str]
) -> dict[frozenset[str], str]:
    """Return each set of resources that some worker must have, with a stage that asks for it."""
    wanted = {route(plan, name, routes).resources: name for name in stages}
    return {resources: name for resources, name in wanted.items() if resources}
