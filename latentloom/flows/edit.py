"""The flow that edits one video. Prefect moves identifiers (store, run, stage, chunks), never arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import Flow, flow, task
from prefect.runtime import flow_run

from latentloom.errors import InterruptedRunError, LatentloomError, StageError
from latentloom.flows.engine import Failure, settle
from latentloom.flows.execute import execute
from latentloom.flows.runs import read_plan, read_state
from latentloom.flows.steps import Step
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through

Tick = Callable[[], None]
_ticks: list[Tick] = []
"""What is called while a flow of this process waits; the command line's progress."""


def _flow_run_name() -> str:
    parameters: dict[str, Any] = flow_run.get_parameters()
    state = read_state(Store.open(parameters["store"], create=False), parameters["run"])
    return f"{os.path.basename(state.source)} / {state.name}"


@task(name="chunks", task_run_name="{stage} {first}-{last}", persist_result=False)
def run_group(store: str, run: str, stage: str, indices: list[int], first: int, last: int) -> int:
    """Work through chunks of one stage; returns how many were computed."""
    opened = Store.open(store, create=False)
    return work_through(opened, _plan_of(store, run), run, stage, indices)


@flow(
    name="edit-video",
    flow_run_name=_flow_run_name,
    persist_result=False,
    validate_parameters=True,
)
def edit_video(store: str, run: str, workers: int = 1) -> dict[str, Any]:
    """Run a registered plan to its end.

    Args:
        store: URI of the store.
        run: Run id.
        workers: Task groups that run at once.

    Returns:
        The run's state as plain data.

    Raises:
        LatentloomError: What went wrong; finished chunks are kept, and the same call continues.
    """
    opened = Store.open(store, create=False)
    state = execute(
        opened,
        _plan_of(store, run),
        read_state(opened, run),
        workers=workers,
        run_groups=partial(_submit, store, run),
    )
    return state.model_dump(mode="json")


def flow_of(store: str, run: str, *, workers: int) -> Flow[..., dict[str, Any]]:
    """Return the flow with a run's identifiers as defaults, so that it needs no parameters."""

    def edit_registered_video(
        store: str = store, run: str = run, workers: int = workers
    ) -> dict[str, Any]:
        return edit_video.fn(store, run, workers)

    return flow(name="edit-video", flow_run_name=_flow_run_name, persist_result=False)(
        edit_registered_video
    )


def _submit(store: str, run: str, step: Step) -> int:
    """Run the task groups of a step as Prefect tasks, and look at the state of every one."""
    futures = [
        run_group.submit(
            store=store,
            run=run,
            stage=step.stage,
            indices=list(group),
            first=group[0],
            last=group[-1],
        )
        for group in step.groups
    ]
    failures = settle(futures, tick=_call_ticks)
    if failures:
        raise _most_telling(failures)
    return sum(future.result() for future in futures)


def on_tick(tick: Tick) -> Callable[[], None]:
    """Have a function called while flows of this process wait; returns what ends that."""
    _ticks.append(tick)
    return lambda: _ticks.remove(tick)


def _call_ticks() -> None:
    for tick in _ticks:
        tick()


_plans: dict[tuple[str, str], Plan] = {}


def _plan_of(store: str, run: str) -> Plan:
    """Return a run's plan, read once per process."""
    if (store, run) not in _plans:
        _plans.clear()
        _plans[store, run] = read_plan(Store.open(store, create=False), run)
    return _plans[store, run]


def _most_telling(failures: list[Failure]) -> BaseException:
    """Choose the error to report: one of ours, and rather a cause than "stopped"."""
    errors = [failure.error for failure in failures]
    ours = [error for error in errors if isinstance(error, LatentloomError)]
    causes = [error for error in ours if not isinstance(error, InterruptedRunError)]
    if causes or ours:
        return (causes or ours)[0]
    error = errors[0]
    return StageError(f"{type(error).__name__}: {error}. Finished chunks are kept")
