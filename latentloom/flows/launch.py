"""Run a plan here and wait for it: register, start an engine, follow the flow, say how it ended."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from latentloom.errors import HeldError, LatentloomError, ResourceError, UsageError
from latentloom.flows import engine
from latentloom.flows.estimate import SHARED_BYTES, bytes_beside
from latentloom.flows.need import Need, find_need
from latentloom.flows.notify import announced, ending_of_run
from latentloom.flows.progress import Progress, StageProgress, clock
from latentloom.flows.runs import lease_name, read_state, register, update_state
from latentloom.flows.until import find_need_until, find_stop, stopped_bytes
from latentloom.schemas.base import readable
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState, StopPoint
from latentloom.storage.leases import holder, try_lease
from latentloom.storage.store import Store

Write = Callable[[str], object]


def launch(
    store: Store,
    plan: Plan,
    *,
    workers: int,
    scheduler: str | None = None,
    wait: bool,
    overwrite: bool,
    write: Write,
    run_id: str | None = None,
    until: str | None = None,
    preview: bool = False,
) -> tuple[RunState, LatentloomError | None]:
    """Run a plan on an engine of this process.

    Args:
        store: Where chunks lie.
        plan: The plan.
        workers: Worker processes; 1 is this one.
        scheduler: Address of a Dask scheduler whose workers are used instead.
        wait: Whether to wait for another process that runs the same plan.
        overwrite: Whether an output that is not ours may be replaced.
        write: Shows a message to the user.
        run_id: The registered run to continue.
        until: ``[STAGE:]N``, steps of a stage after which to stop.
        preview: Whether to write a picture of what is to come from there.

    Returns:
        The run's state, and the error that ended it.

    Raises:
        HeldError: If another process runs the plan and ``wait`` is off.
        UsageError: If the run cannot stop or draw where it is told to.
    """
    stop = _checked_stop(plan, until, preview=preview)
    _check_output(plan, overwrite=overwrite)
    if scheduler is None:
        _check_memory(plan, workers)
    check_disk(store, plan)
    if stop is not None:
        check_disk_until(store, plan, stop)
    _look_for_others(store, plan, wait=wait, write=write)
    state = _state_of(store, plan, run_id, overwrite=overwrite)
    write(f"run {state.run} (to continue it after anything: the same command)")
    engine.quiet_environment()
    devices = engine.cuda_devices() if plan.facts.machine.device == "cuda" else ()
    try:
        with (
            announced(ending_of_run(state, store.uri)) as ending,
            engine.quiet_libraries(),
            engine.session(
                workers=workers,
                threads=plan.recipe.numerics.threads,
                devices=devices,
                scheduler=scheduler,
                notice=lambda: _say_stopping(write),
                while_starting=_import_flow,
            ) as session,
        ):
            need = find_needed(store, plan, state.output, stop)
            progress = _progress(store, plan, state, need, session.workers, write)
            try:
                ended = run_on(
                    session,
                    store,
                    plan,
                    state.run,
                    need,
                    tick=progress.tick,
                    wait=wait,
                    until=until,
                    preview=preview,
                )
                ending.tell_of(RunState.model_validate(ended))
            finally:
                progress.look()
    except LatentloomError as error:
        return read_state(store, state.run), error
    return RunState.model_validate(ended), None


def run_on(
    session: engine.Session,
    store: Store,
    plan: Plan,
    run: str,
    need: Need,
    *,
    tick: Callable[[], None],
    wait: bool = True,
    until: str | None = None,
    preview: bool = False,
) -> dict[str, Any]:
    """Run a registered plan as a flow run on the workers of a session.

    Args:
        session: From ``engine.session``.
        store: Where chunks lie.
        plan: The plan.
        run: Its run.
        need: Indices of needed chunks, by stage.
        tick: Called now and then.
        wait: Whether to wait for another process that runs the same plan.
        until: ``[STAGE:]N``, steps of a stage after which to stop.
        preview: Whether to write a picture of what is to come from there.

    Returns:
        The run's state as plain data.
    """
    from latentloom.flows import edit

    edit.keep_plan(store.uri, run, plan)
    with ExitStack() as held:
        held.enter_context(edit.ticking(tick))
        if session.cluster is not None:
            pass_on_stop = held.enter_context(session.cluster.prepared(store.uri, plan, run, need))
            held.enter_context(edit.ticking(pass_on_stop))
        return edit.edit_video.with_options(task_runner=session.runner)(
            store=store.uri,
            run=run,
            workers=session.workers,
            spare=_spare(session, plan),
            wait=wait,
            until=until,
            preview=preview,
        )


def _spare(session: engine.Session, plan: Plan) -> int:
    """Count the workers that cannot run a model of the plan."""
    if session.cluster is None or plan.facts.machine.device == "cpu":
        return 0
    return session.cluster.threads_without_device


def find_needed(
    store: Store, plan: Plan, output: str | None, until: StopPoint | None = None
) -> Need:
    """Return the indices of the chunks that a run has to compute, by stage, up to where it is to stop."""
    from latentloom.tasks.published import is_published

    published = output is not None and is_published(plan, output)
    if until is not None and not published:
        return find_need_until(store, plan, until)
    present = store.present(list(plan.keys()))
    return find_need(plan, present, published=published, look=store.present)


def check_disk(store: Store, plan: Plan) -> None:
    """Refuse a plan whose chunks still to be computed do not fit on a local store's disk.

    Raises:
        ResourceError: If they do not.
    """
    free = plan.facts.machine.free_disk_bytes
    present = store.present(list(plan.keys()))
    left = sum(
        size
        for stage in plan.stages
        if not stage.transient
        for chunk, size in zip(stage.chunks, stage.chunk_bytes, strict=False)
        if chunk.key not in present
    )
    unfinished = [
        stage for stage in plan.stages if any(chunk.key not in present for chunk in stage.chunks)
    ]
    left += max((bytes_beside(stage) for stage in unfinished), default=0)
    if free is not None and left > free:
        raise ResourceError(
            f"the plan has {readable(left)} still to write, the disk of the store has {readable(free)}"
            " free; free some, shorten the cut, or use another --store"
        )


def check_disk_until(store: Store, plan: Plan, until: StopPoint) -> None:
    """Refuse a stop at which the states of all chunks do not fit on a local store's disk.

    Raises:
        ResourceError: If they do not.
    """
    free = plan.facts.machine.free_disk_bytes
    needed = stopped_bytes(plan, until, find_need_until(store, plan, until))
    if free is not None and needed > free:
        raise ResourceError(
            f"up to step {until.step} of stage {until.stage!r} {readable(needed)} are to be written, the"
            f" states of all chunks among them; the disk of the store has {readable(free)} free. Free"
            " some, shorten the cut, or leave out --until-step"
        )


def _checked_stop(plan: Plan, until: str | None, *, preview: bool) -> StopPoint | None:
    if until is None:
        if preview:
            raise UsageError(
                "--preview shows where a run stops; say after which step, as --until-step N"
            )
        return None
    stop = find_stop(plan, until)
    if preview:
        from latentloom.flows.preview import preview_path

        preview_path(plan)
    return stop


def _check_memory(plan: Plan, workers: int) -> None:
    """Refuse more workers than fit: each holds its own libraries and models."""
    limit = plan.recipe.limits.memory or plan.facts.machine.memory_bytes
    needed = plan.peak_bytes + (workers - 1) * (plan.peak_bytes - SHARED_BYTES)
    if workers > 1 and needed > limit:
        raise ResourceError(
            f"{workers} workers need {readable(needed)} of memory, the limit is {readable(limit)};"
            " take fewer --workers, or raise limits.memory"
        )


def _say_stopping(write: Write) -> None:
    write("stopping after the chunk at hand; press Ctrl-C again to stop now")


def _import_flow() -> None:
    importlib.import_module("latentloom.flows.edit")


def _check_output(plan: Plan, *, overwrite: bool) -> None:
    from latentloom.tasks.published import check_output, is_published

    if plan.output is not None and not is_published(plan, plan.output):
        check_output(plan.output, source=plan.facts.source.path, overwrite=overwrite)


def _look_for_others(store: Store, plan: Plan, *, wait: bool, write: Write) -> None:
    """Say that another process runs this plan, or refuse to wait for it."""
    name = lease_name(plan.digest)
    taken = try_lease(store, name)
    if taken is not None:
        taken.release()
        return
    other = holder(store, name) or "another process"
    if not wait:
        raise HeldError(f"this plan is run by {other}; wait for it, or leave out --no-wait")
    write(f"{other} runs this plan; waiting for it")


def _state_of(store: Store, plan: Plan, run_id: str | None, *, overwrite: bool) -> RunState:
    if run_id is None:
        return register(store, plan, overwrite=overwrite)
    return update_state(store, read_state(store, run_id), overwrite=overwrite)


def _progress(
    store: Store, plan: Plan, state: RunState, need: Need, workers: int, write: Write
) -> Progress:
    def show(stage: StageProgress, eta: float | None) -> None:
        left = "" if eta is None or not stage.frames_left else f", {clock(eta)} left"
        write(f"{stage.line}{left}")

    return Progress(store, plan, state.run, need, workers, show)
