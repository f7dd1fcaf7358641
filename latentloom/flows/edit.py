"""The flow that edits one video: look at the records, compute what is needed, publish.

Prefect moves identifiers (store, run, stage, chunk numbers); arrays lie in the store. A step is over when the
records say so, whatever states Prefect reports; what vanished meanwhile is looked for again.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prefect import Flow, flow, task
from prefect.runtime import flow_run

from latentloom.errors import (
    InterruptedRunError,
    LatentloomError,
    MissingChunkError,
    StageError,
)
from latentloom.flows.engine import Failure, settle
from latentloom.flows.need import deletable, find_need
from latentloom.flows.runs import read_plan, read_state, update_state
from latentloom.flows.steps import Step, plan_steps
from latentloom.schemas.event import Event, EventKind
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState, StageTally
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through, worker_name
from latentloom.tasks.publish import publish
from latentloom.tasks.published import check_output, is_published
from latentloom.tasks.stop import stop_requested

MAX_ROUNDS = 5
"""How often a run looks again after chunks vanished under it, before it gives up."""

Tick = Callable[[], None]
_ticks: list[Tick] = []
"""What is called while a flow of this process waits; the command line's progress."""


def _flow_run_name() -> str:
    parameters: dict[str, Any] = flow_run.get_parameters()
    state = read_state(Store.open(parameters["store"], create=False), parameters["run"])
    return f"{os.path.basename(state.source)} / {state.name}"


@task(name="chunks", task_run_name="{stage} {first}-{last}", persist_result=False)
def run_group(
    store: str, run: str, stage: str, indices: list[int], first: int, last: int
) -> int:
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
    plan = _plan_of(store, run)
    with lease(opened, f"plan-{plan.digest[:40]}", stop=stop_requested):
        execution = _Execution(opened, plan, read_state(opened, run), workers)
        return execution.run_to_the_end().model_dump(mode="json")


def flow_of(store: str, run: str, *, workers: int) -> Flow[..., dict[str, Any]]:
    """Return the flow with a run's identifiers as defaults, so that it needs no parameters."""

    def edit_registered_video(
        store: str = store, run: str = run, workers: int = workers
    ) -> dict[str, Any]:
        return edit_video.fn(store, run, workers)

    return flow(
        name="edit-video", flow_run_name=_flow_run_name, persist_result=False
    )(edit_registered_video)


@dataclass
class _Execution:
    store: Store
    plan: Plan
    state: RunState
    workers: int
    computed: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def run_to_the_end(self) -> RunState:
        """Compute and publish; the state and an event say how it ended."""
        self.state = update_state(self.store, self.state, state="running", error=None)
        self._note("run_started")
        try:
            self._compute_and_publish()
        except InterruptedRunError:
            self._end("interrupted", "run_interrupted", "interrupted; the same command resumes")
            raise
        except BaseException as error:
            self._end("failed", "run_failed", str(error) or type(error).__name__)
            raise
        stages = tuple(self._tallies())
        self.state = update_state(self.store, self.state, state="finished", stages=stages)
        self._note("run_finished")
        return self.state

    def _compute_and_publish(self) -> None:
        output = self.state.output
        if output is not None:
            check_output(
                output, source=self.plan.facts.source.path, overwrite=self.state.overwrite
            )
        published = output is not None and is_published(self.plan, output)
        for attempt in range(MAX_ROUNDS):
            try:
                self._compute_needed(published)
                if output is not None and not published:
                    self._publish(output)
                self._sweep()
                return
            except MissingChunkError as error:
                if attempt == MAX_ROUNDS - 1:
                    raise
                self._note("note", message=str(error))

    def _compute_needed(self, published: bool) -> None:
        need = find_need(self.plan, self._present(), published=published)
        for step in plan_steps(self.plan, need, workers=self.workers):
            begun = time.monotonic()
            self._run_step(step)
            self.seconds[step.stage] += time.monotonic() - begun

    def _run_step(self, step: Step) -> None:
        if stop_requested():
            raise InterruptedRunError(f"stopped before stage {step.stage!r}; the same command resumes")
        futures = [
            run_group.submit(
                store=self.store.uri,
                run=self.state.run,
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
        self.computed[step.stage] += sum(future.result() for future in futures)
        self._check_records(step)
        self._delete_behind(step)

    def _check_records(self, step: Step) -> None:
        stage = self.plan.by_name[step.stage]
        keys = [stage.chunks[index].key for group in step.groups for index in group]
        missing = set(keys) - self.store.present(keys)
        if missing:
            raise MissingChunkError(
                f"stage {step.stage!r}: {len(missing)} chunks have no record after their tasks ended"
            )

    def _delete_behind(self, step: Step) -> None:
        """Delete the frames that this step was the last to read."""
        stage = self.plan.by_name[step.stage]
        feeders = [self.plan.by_name[name] for name in stage.inputs]
        if any(feeder.transient for feeder in feeders):
            self._sweep()

    def _sweep(self) -> None:
        transient = [stage for stage in self.plan.stages if stage.transient]
        if not transient:
            return
        names = {stage.name for stage in transient}
        keys = [
            chunk.key
            for stage in self.plan.stages
            if stage.name in names or names & set(stage.inputs)
            for chunk in stage.chunks
        ]
        present = self.store.present(keys)
        for stage in transient:
            for index in deletable(self.plan, stage, present):
                self.store.delete(stage.chunks[index].key)

    def _publish(self, output: str) -> None:
        begun = time.monotonic()
        publish(
            self.store,
            self.plan,
            run_id=self.state.run,
            output=output,
            overwrite=self.state.overwrite,
        )
        self.seconds["encode_video"] += time.monotonic() - begun

    def _present(self) -> set[str]:
        return self.store.present(list(self.plan.keys()))

    def _tallies(self) -> list[StageTally]:
        present = self._present()
        tallies = []
        for stage in self.plan.stages:
            lasting = [] if stage.transient or not stage.stored else stage.chunks
            there = sum(chunk.key in present for chunk in lasting)
            computed = min(self.computed[stage.name], there)
            tallies.append(
                StageTally(
                    op=stage.op,
                    name=stage.name,
                    key=stage.key,
                    chunks=len(lasting),
                    computed=computed,
                    reused=there - computed,
                    transient=self.computed[stage.name] if stage.transient else 0,
                    seconds=round(self.seconds[stage.name], 3),
                )
            )
        return tallies

    def _end(self, state: str, kind: EventKind, message: str) -> None:
        try:
            self.state = update_state(self.store, self.state, state=state, error=message)
            self._note(kind, message=message)
        except (LatentloomError, OSError):
            return  # The store is what failed; the error that is on its way says so.

    def _note(self, kind: EventKind, **detail: str) -> None:
        event = Event(
            time=time.time(),
            kind=kind,
            run=self.state.run,
            worker=worker_name(),
            detail=dict(detail),
        )
        self.store.append_events(self.state.run, worker_name(), [event])


def on_tick(tick: Tick) -> Callable[[], None]:
    """Have a function called while flows of this process wait; returns what ends that."""
    _ticks.append(tick)
    return lambda: _ticks.remove(tick)


def _call_ticks() -> None:
    for tick in list(_ticks):
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
