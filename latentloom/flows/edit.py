"""The flow that edits one video. Prefect moves identifiers (store, run, stage, chunks), never arrays."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast
from uuid import UUID

from prefect import Flow, flow, get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Pending
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from latentloom.errors import InterruptedRunError, LatentloomError, StageError
from latentloom.flows.artifacts import show_result, shown
from latentloom.flows.engine import Failure, routed, settle
from latentloom.flows.execute import execute
from latentloom.flows.routing import route
from latentloom.flows.runs import read_plan, read_state
from latentloom.flows.server import EMBEDDED
from latentloom.flows.slots import device_slot
from latentloom.flows.steps import Step
from latentloom.flows.until import find_stop
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.schemas.settings import read_settings
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through
from latentloom.tasks.stop import working_for

Tick = Callable[[], None]
_KNOWN_SECONDS = 5.0
_ticks: list[Tick] = []
"""What is called while a flow of this process waits; the command line's progress."""


def thread_runner(workers: int) -> TaskRunner[Any]:
    """Run so many task groups at once; Prefect's own default has no bound."""
    return cast("TaskRunner[Any]", ThreadPoolTaskRunner(max_workers=workers))


def _flow_run_name() -> str:
    parameters: dict[str, Any] = flow_run.get_parameters()
    state = read_state(Store.open(parameters["store"], create=False), parameters["run"])
    return f"{os.path.basename(state.source)} / {state.name}"


@task(
    name="chunks",
    task_run_name="{title} {first}-{last}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_group(
    store: str,
    run: str,
    stage: str,
    indices: list[int],
    step: int | None,
    title: str,
    first: int,
    last: int,
    on_device: bool,
    until_step: int | None = None,
) -> dict[str, int]:
    """Work through chunks of one stage; returns how many were computed, by stage."""
    opened, plan = Store.open(store, create=False), _plan_of(store, run)
    device = plan.facts.machine.device if on_device else None
    with working_for(run), device_slot(device):
        return dict(work_through(opened, plan, run, stage, indices, step, until_step=until_step))


@flow(
    name="edit-video",
    flow_run_name=_flow_run_name,
    persist_result=False,
    validate_parameters=True,
    task_runner=thread_runner(1),
)
def edit_video(
    store: str,
    run: str,
    workers: int = 1,
    spare: int = 0,
    wait: bool = True,
    until: str | None = None,
    preview: bool = False,
) -> dict[str, Any]:
    """Run a registered plan to its end.

    Args:
        store: URI of the store.
        run: Run id.
        workers: Task groups that run at once.
        spare: Of these, on workers without a device.
        wait: Whether to wait for another process that runs the same plan.
        until: ``[STAGE:]N``, steps of a stage after which to stop.
        preview: Whether to write a picture of what is to come from there.

    Returns:
        The run's state as plain data.

    Raises:
        LatentloomError: What went wrong; finished chunks are kept, and the same call continues.
    """
    return run_in_flow(
        store, run, workers=workers, spare=spare, wait=wait, until=until, preview=preview
    )


def run_in_flow(
    store: str,
    run: str,
    *,
    workers: int = 1,
    spare: int = 0,
    wait: bool = True,
    until: str | None = None,
    preview: bool = False,
) -> dict[str, Any]:
    """Run a registered plan in the flow run at hand, whose log has its warnings; see ``edit_video``."""
    opened = Store.open(store, create=False)
    plan = _plan_of(store, run)
    for warning in plan.warnings:
        get_run_logger().warning(warning)
    with shown(opened, plan, run) as show_progress, ticking(show_progress):
        state = execute(
            opened,
            plan,
            read_state(opened, run),
            workers=workers,
            spare=spare,
            wait=wait,
            run_groups=partial(_submit, store, run, read_settings().routes),
            until=None if until is None else find_stop(plan, until),
            preview=preview,
        )
    show_result(plan, state)
    return state.model_dump(mode="json")


def run_registered(
    store: str, run: str, *, tags: Sequence[str] = (), parent_task_run: str | None = None
) -> tuple[RunState, str]:
    """Run a registered plan as a flow run that belongs to a task run of another process.

    Returns:
        The run's state, and the id of the flow run.

    Raises:
        LatentloomError: What went wrong.
    """
    parameters = {"store": store, "run": run}
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(
            edit_video,
            parameters=parameters,
            tags=tags,
            parent_task_run_id=_known(client, parent_task_run),
            state=Pending(),
        )
    ended = run_flow(edit_video, flow_run=flow_run, parameters=parameters)
    return RunState.model_validate(ended), str(flow_run.id)


def _known(client: SyncPrefectClient, task_run: str | None) -> UUID | None:
    """Return a task run once the server has it: its event may come late, or be lost in an outage."""
    deadline = time.monotonic() + _KNOWN_SECONDS
    while task_run is not None and time.monotonic() < deadline:
        try:
            return client.read_task_run(UUID(task_run)).id
        except ObjectNotFound:
            time.sleep(0.1)
    return None


def flow_of(store: str, run: str, *, workers: int) -> Flow[..., dict[str, Any]]:
    """Return the flow with a run's identifiers as defaults, so that it can be called without parameters.

    Its task runs go through at most ``workers`` threads. To deploy a run, deploy ``edit_video`` with
    ``store`` and ``run`` as parameters: a deployment needs the entrypoint of a module.
    """

    def edit_registered_video(
        store: str = store, run: str = run, workers: int = workers
    ) -> dict[str, Any]:
        return edit_video.fn(store, run, workers)

    return flow(
        name="edit-video",
        flow_run_name=_flow_run_name,
        persist_result=False,
        task_runner=thread_runner(workers),
    )(edit_registered_video)


def _submit(store: str, run: str, routes: Mapping[str, str], step: Step) -> Counter[str]:
    """Run the task groups of a step as Prefect tasks, and look at the state of every one."""
    futures = []
    for part in reversed(step.parts):  # first what not every worker may run
        way = route(_plan_of(store, run), part.stage, routes, inputs_made=part.inputs_made)
        number = part.denoising_step
        # Prefect asks its server for limits of each tag; nobody sets any on an embedded one.
        tagged = run_group if os.environ.get(EMBEDDED) else run_group.with_options(tags=way.tags)
        with routed(way.resources):
            futures += [
                tagged.submit(
                    store=store,
                    run=run,
                    stage=part.stage,
                    indices=list(group),
                    step=number,
                    title=part.stage if number is None else f"{part.stage} step {number}",
                    first=group[0],
                    last=group[-1],
                    on_device=way.on_device,
                    until_step=part.until_step,
                )
                for group in part.groups
            ]
    failures = settle(futures, tick=_call_ticks)
    if failures:
        raise _most_telling(failures)
    computed = Counter[str]()
    for future in futures:
        computed.update(future.result())
    return computed


@contextmanager
def ticking(tick: Tick) -> Iterator[None]:
    """Have a function called while flows of this process wait."""
    _ticks.append(tick)
    try:
        yield
    finally:
        _ticks.remove(tick)


def _call_ticks() -> None:
    for tick in _ticks:
        tick()


_plans: dict[tuple[str, str], Plan] = {}


def keep_plan(store: str, run: str, plan: Plan) -> None:
    """Have flows of this process use a plan that is at hand, instead of reading another copy of it."""
    _plans.clear()
    _plans[store, run] = plan


def _plan_of(store: str, run: str) -> Plan:
    """Return a run's plan, read once per process."""
    if (store, run) not in _plans:
        keep_plan(store, run, read_plan(Store.open(store, create=False), run))
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
