"""Run a registered plan to its end: look at the records, compute what is needed, publish.

A step is over when the records say so; what vanished meanwhile is looked for again. How a step's task
groups are run is the caller's: ``flows.edit`` submits them to Prefect.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from latentloom.errors import InterruptedRunError, LatentloomError, MissingChunkError
from latentloom.flows.calibration import TreeWatch, remember, remember_seconds
from latentloom.flows.handover import hand_over
from latentloom.flows.need import Need, find_need
from latentloom.flows.preview import write_preview
from latentloom.flows.resolve import check_facts
from latentloom.flows.runs import lease_name, update_state
from latentloom.flows.steps import Step, plan_steps
from latentloom.flows.sweep import sweep, sweep_before, sweep_behind
from latentloom.flows.until import announce_stop, find_need_until, find_standing
from latentloom.schemas.event import Event, EventKind
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState, RunStateName, StageTally, StopPoint
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
from latentloom.tasks.group import work_through
from latentloom.tasks.journal import worker_name
from latentloom.tasks.publish import publish
from latentloom.tasks.published import check_output, is_published
from latentloom.tasks.stop import stop_requested

MAX_SAME_ERRORS = 3
"""How often a run looks again for the same vanished chunk, before it gives up."""

RunGroups = Callable[[Step], Counter[str]]
"""Runs the task groups of a step side by side, and returns how many chunks of each stage they computed."""


def execute(
    store: Store,
    plan: Plan,
    state: RunState,
    *,
    workers: int = 1,
    spare: int = 0,
    wait: bool = True,
    run_groups: RunGroups | None = None,
    until: StopPoint | None = None,
    preview: bool = False,
) -> RunState:
    """Run a plan, alone: another process with the same plan waits until this one is done.

    Args:
        store: Where chunks lie.
        plan: The plan of a registered run.
        state: The run's state.
        workers: Task groups that run at once.
        spare: Of these, on workers without a device.
        wait: Whether to wait for another process that runs the plan.
        run_groups: How they are run; one by one, in this process, by default.
        until: Where to stop instead of going to the end; from `flows.until.find_stop`.
        preview: Whether to write a picture of what is to come from there.

    Returns:
        The run's final state.

    Raises:
        HeldError: If another process runs the plan and ``wait`` is off.
        LatentloomError: What went wrong; finished chunks are kept, and the same call continues.
    """
    with lease(store, lease_name(plan.digest), wait=wait, stop=stop_requested):
        groups = run_groups or _in_this_process(store, plan, state.run)
        return _Execution(store, plan, state, workers, spare, groups, until, preview).run()


def _in_this_process(store: Store, plan: Plan, run_id: str) -> RunGroups:
    def run_groups(step: Step) -> Counter[str]:
        computed = Counter[str]()
        for part in reversed(step.parts):
            for group in part.groups:
                computed += work_through(
                    store,
                    plan,
                    run_id,
                    part.stage,
                    group,
                    part.denoising_step,
                    until_step=part.until_step,
                )
        return computed

    return run_groups


@dataclass
class _Execution:
    store: Store
    plan: Plan
    state: RunState
    workers: int
    spare: int
    run_groups: RunGroups
    until: StopPoint | None = None
    preview: bool = False
    computed: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    at_start: set[str] = field(default_factory=set)
    peaks: dict[str, int] = field(default_factory=dict)

    def run(self) -> RunState:
        """Compute and publish, or stop where it is told to; the state and an event say how it ended."""
        self.state = update_state(
            self.store,
            self.state,
            state="running",
            error=None,
            until=self.until,
            preview=None,
            preview_left_out=0,
        )
        self.at_start = self._present()
        self._note("run_started")
        try:
            ended = self._compute_and_publish()
        except InterruptedRunError:
            self._end("interrupted", "run_interrupted", "interrupted; the same command resumes")
            raise
        except BaseException as error:
            self._end("failed", "run_failed", str(error) or type(error).__name__)
            raise
        stopped = self.state.until is not None
        if self.workers == 1 and not stopped:
            remember(self.store, self.plan, self.peaks)
            remember_seconds(self.store, self.plan, self.seconds, self.computed)
        stages = tuple(self._tallies())
        self.state = update_state(self.store, self.state, state=ended, stages=stages)
        self._note("run_stopped" if stopped else "run_finished")
        return self.state

    def _compute_and_publish(self) -> RunStateName:
        output = self.state.output
        published = output is not None and is_published(self.plan, output)
        if output is not None and not published:
            check_output(output, source=self.plan.facts.source.path, overwrite=self.state.overwrite)
        seen = Counter[str]()
        while True:
            try:
                if self.until is not None and not published:
                    return self._one_round_until(self.until)
                self._one_round(output, published=published)
            except MissingChunkError as error:
                seen[str(error)] += 1
                if seen[str(error)] == MAX_SAME_ERRORS:
                    raise
                self._note("note", message=str(error))
            else:
                self.state = self.state.model_copy(update={"until": None})
                return "finished"

    def _one_round_until(self, until: StopPoint) -> RunStateName:
        """Go as far as to the stop, and draw what is to come from there."""
        announce_stop(self.store, self.plan, until)
        need = find_need_until(self.store, self.plan, until)
        self._compute(need, until)
        sweep(self.store, self.plan, standing=until.stage)
        if not self.preview:
            return "stopped"
        path, left_out = write_preview(self.store, self.plan, until)
        drawn = {"preview": str(path), "preview_left_out": left_out}
        self.state = self.state.model_copy(update=drawn)
        return "previewed"

    def _one_round(self, output: str | None, *, published: bool) -> None:
        self._compute_needed(published=published)
        if output is not None and not published:
            self._publish(output)
        sweep(self.store, self.plan)

    def _compute_needed(self, *, published: bool) -> None:
        present = self._present()
        self._compute(find_need(self.plan, present, published=published, look=self.store.present))

    def _compute(self, need: Need, until: StopPoint | None = None) -> None:
        if any(need.values()):
            check_facts(self.plan, self.store)
        for name, wanted in need.steps.items():
            if wanted:
                sweep_before(self.store, self.plan.by_name[name], wanted[0].step)
        with TreeWatch() as watch:
            steps = plan_steps(self.plan, need, workers=self.workers, until=until)
            for step in hand_over(self.plan, steps, workers=self.workers, spare=self.spare):
                begun = time.monotonic()
                self._run_step(step)
                self.seconds[step.stage] += time.monotonic() - begun
                self.peaks[step.stage] = max(self.peaks.get(step.stage, 0), watch.take_peak())

    def _run_step(self, step: Step) -> None:
        if stop_requested():
            raise InterruptedRunError(
                f"stopped before stage {step.stage!r}; the same command resumes"
            )
        self.computed += self.run_groups(step)
        for part in step.parts:
            self._check_records(part)

    def _check_records(self, step: Step) -> None:
        stage = self.plan.by_name[step.stage]
        keys = [
            stage.key_at(index, step.denoising_step) for group in step.groups for index in group
        ]
        missing = set(keys) - self.store.present(keys)
        if missing and step.until_step is not None:
            standing = find_standing(self.store, stage, step.until_step)
            missing -= {stage.chunks[index].key for index in standing}
        if missing:
            raise MissingChunkError(
                f"stage {step.stage!r}: {len(missing)} chunks have no record after their tasks ended"
            )
        if step.denoising_step is not None:
            sweep_behind(self.store, stage, step.denoising_step)

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
            new = sum(c.key in present and c.key not in self.at_start for c in lasting)
            computed = min(max(self.computed[stage.name], new), there)
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

    def _end(self, state: RunStateName, kind: EventKind, message: str) -> None:
        try:
            stages = tuple(self._tallies())
            self.state = update_state(
                self.store, self.state, state=state, error=message, stages=stages
            )
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
