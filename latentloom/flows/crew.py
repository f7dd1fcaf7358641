"""A crew of worker processes, each editing one video at a time with its models kept loaded.

A worker that dies, of a signal or for lack of memory, takes one video with it and is replaced.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from pebble import ProcessExpired, ProcessPool

from latentloom.errors import LatentloomError, ResourceError, StageError
from latentloom.flows.archive import Template
from latentloom.flows.engine import thread_environment
from latentloom.flows.environment import environment, prefect_settings
from latentloom.flows.scratch import scratch_folder
from latentloom.flows.worker import behave_as_worker

_held: list[FileLock] = []


@dataclass(frozen=True)
class Job:
    """One video to edit."""

    store: str
    template: Template
    source: str
    output: str
    overrides: tuple[str, ...]
    workers: int
    """Worker processes that share the machine's memory."""
    tags: tuple[str, ...] = ()
    """Of the flow run."""
    parent_task_run: str | None = None
    """The task run that the flow run belongs to."""


@dataclass(frozen=True)
class Outcome:
    """How an edit ended well."""

    run: str
    flow_run: str | None
    computed: int
    reused: int
    seconds: float
    warnings: tuple[str, ...]
    """Of its plan."""


class Crew:
    """Worker processes; use it as ``with crew(...) as workers``."""

    def __init__(self, pool: ProcessPool) -> None:
        self._pool = pool

    def edit(self, job: Job) -> Outcome:
        """Have a worker edit a video, and wait for it.

        Raises:
            LatentloomError: What went wrong, ``StageError`` if the worker died of it.
        """
        future: Future[Outcome] = self._pool.schedule(edit_video, args=(job,))
        try:
            return future.result()
        except ProcessExpired as error:
            raise StageError(f"{job.source}: {_cause(error)}; its worker was replaced") from error
        except LatentloomError:
            raise
        except Exception as error:
            raise StageError(f"{job.source}: {type(error).__name__}: {error}") from error


@contextmanager
def crew(workers: int, threads: int, *, devices: Sequence[str] = ()) -> Iterator[Crew]:
    """Keep worker processes until the end, then stop them.

    Args:
        workers: How many.
        threads: Of torch, in each.
        devices: CUDA devices, dealt out among the workers.
    """
    with (
        scratch_folder() as folder,
        environment(thread_environment(workers, threads)),
        ProcessPool(
            max_workers=workers,
            context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(tuple(devices), str(folder)),
        ) as pool,
    ):
        try:
            yield Crew(pool)
        except BaseException:
            # Workers end at once.
            pool.stop()
            raise


def edit_video(job: Job) -> Outcome:
    """Edit a video in this process, as a flow run of the server in force.

    Raises:
        LatentloomError: What went wrong. An error of a library may not pickle, and would break the crew.
    """
    try:
        return _edit(job)
    except LatentloomError:
        raise
    except Exception as error:
        raise StageError(f"{job.source}: {type(error).__name__}: {error}") from error


def _edit(job: Job) -> Outcome:
    from latentloom.flows.compile import compile_plan
    from latentloom.flows.edit import run_registered
    from latentloom.flows.outage import outlast
    from latentloom.flows.resolve import resolve
    from latentloom.flows.runs import register
    from latentloom.schemas.base import readable
    from latentloom.storage.store import Store

    begun = time.monotonic()
    store = Store.open(job.store, create=False)
    recipe = job.template.recipe(job.source, job.output, job.overrides)
    plan = compile_plan(recipe, resolve(recipe, store))
    limit = recipe.limits.memory or plan.facts.machine.memory_bytes
    if plan.peak_bytes * job.workers > limit:
        raise ResourceError(
            f"{job.workers} videos at once need {readable(plan.peak_bytes * job.workers)} of memory,"
            f" the limit is {readable(limit)}; lower max_parallel, or raise limits.memory"
        )
    state = register(store, plan)
    run = partial(
        run_registered, store.uri, state.run, tags=job.tags, parent_task_run=job.parent_task_run
    )
    with prefect_settings():
        ended, flow_run = outlast(run)
    return Outcome(
        run=ended.run,
        flow_run=flow_run,
        computed=sum(stage.computed for stage in ended.stages),
        reused=sum(stage.reused for stage in ended.stages),
        seconds=time.monotonic() - begun,
        warnings=plan.warnings,
    )


def _begin(devices: tuple[str, ...], folder: str) -> None:
    """Begin as a worker: signals are the parent's, a device is this process' own."""
    behave_as_worker()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for device in devices:
        lock = FileLock(Path(folder) / f"device-{device}.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            continue
        # Held until the process ends, however it ends.
        _held.append(lock)
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cause(error: ProcessExpired) -> str:
    code = error.exitcode or 0
    if code >= 0:
        return f"the process that edited it ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", most often for lack of memory" if name == "SIGKILL" else ""
    return f"the process that edited it died of {name}{hint}"
