"""What a flow runs on: a Prefect API, one process or a local Dask cluster, and a way to stop.

Prefect and Dask are imported inside functions: they read the environment once, and ``--help``
has no second to spare for them.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentloom.errors import StageError
from latentloom.flows.environment import environment, keep_heap_small, quiet_environment
from latentloom.flows.interruption import interruption, listen_again
from latentloom.flows.server import api_server

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

    from latentloom.flows.cluster import Cluster

__all__ = [
    "Failure",
    "Session",
    "api_server",
    "cuda_devices",
    "interruption",
    "quiet_environment",
    "quiet_libraries",
    "routed",
    "session",
    "settle",
    "task_runner",
    "thread_environment",
]


@dataclass(frozen=True)
class Failure:
    """A task run that did not complete: its place among the futures, and why."""

    index: int
    error: BaseException


@dataclass(frozen=True)
class Session:
    """What a flow runs on."""

    runner: TaskRunner[Any]
    """For ``flow.with_options(task_runner=...)``."""
    workers: int = 1
    """Task groups that run at once."""
    cluster: Cluster | None = None
    """Worker processes; None where this process does the work."""


@contextmanager
def session(
    *,
    workers: int = 1,
    threads: int = 2,
    devices: Sequence[str] = (),
    scheduler: str | None = None,
    notice: Callable[[], None] | None = None,
    while_starting: Callable[[], None] | None = None,
) -> Iterator[Session]:
    """Provide all that a flow needs, and leave nothing behind.

    Args:
        workers: processes; 1 is this one.
        threads: of torch, in each worker.
        devices: CUDA devices, one for each of the first workers.
        scheduler: address of a Dask scheduler whose workers are used instead.
        notice: called when the user asks to stop for the first time.
        while_starting: work to do while the server starts, such as slow imports.

    Raises:
        UsageError: If workers of the scheduler could not reach the server.
        LatentloomError: If server or scheduler cannot be reached.
    """
    keep_heap_small()
    with interruption(notice), ExitStack() as held:
        if scheduler is not None or workers > 1:
            from latentloom.flows import cluster as dask_cluster

            if scheduler is not None:
                dask_cluster.check_address(scheduler)
        held.enter_context(api_server(while_starting))
        threading = thread_environment(1 if scheduler else workers, threads)
        if scheduler is not None:
            cluster = held.enter_context(dask_cluster.connected(scheduler))
        elif workers > 1:
            cluster = held.enter_context(
                dask_cluster.local_cluster(
                    workers, threading, devices=devices, log_level=_log_level()
                )
            )
        else:
            held.enter_context(environment(threading))
            yield Session(task_runner(None))
            return
        yield Session(task_runner(cluster.address), cluster.threads, cluster)


def task_runner(address: str | None) -> TaskRunner[Any]:
    """Run tasks in this process, one after the other, or on the Dask scheduler at `address`."""
    if address is None:
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=1)
    from prefect_dask.task_runners import DaskTaskRunner

    return DaskTaskRunner(address=address)


@contextmanager
def routed(resources: Iterable[str]) -> Iterator[None]:
    """Have tasks that are submitted in the block run on workers with these resources."""
    if wanted := tuple(resources):
        from latentloom.flows.cluster import routed as annotated

        with annotated(wanted):
            yield
    else:
        yield


def settle(
    futures: Sequence[PrefectFuture[Any]],
    *,
    tick: Callable[[], None] | None = None,
    poll_seconds: float = 0.2,
) -> list[Failure]:
    """Wait for every task run and name those that did not complete.

    Prefect's own `wait` swallows what went wrong on Dask, where a flow could end as completed
    with tasks that never ran. This looks at the state of each.

    Args:
        futures: what `submit` returned.
        tick: called at every poll, for progress.
        poll_seconds: how long to wait between polls, and before a signal is noticed.

    Returns:
        The failures in the order of `futures`; empty if all completed.
    """
    listen_again()
    waiting = list(futures)
    while waiting:
        waiting[0].wait(timeout=poll_seconds)
        waiting = [future for future in waiting if not _is_done(future)]
        if tick is not None:
            tick()
    errors = [_error(future) for future in futures]
    return [Failure(index, error) for index, error in enumerate(errors) if error is not None]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries' warnings away from users, unless they asked for them."""
    with warnings.catch_warnings():
        if not sys.warnoptions and not os.environ.get("LATENTLOOM_DEBUG"):
            warnings.simplefilter("ignore")
        yield


def thread_environment(workers: int, threads: int) -> dict[str, str]:
    """Set the thread count that the numerics profile asks for, and how idle threads wait.

    Where all workers together have more threads than there are cores, spinning threads would
    take the cores from working ones: 0.10 s a call against 0.054 (measured, 2 x 2 on 2 cores).
    """
    settings = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)
    )
    if workers * threads > _num_cores():
        settings["OMP_WAIT_POLICY"] = "PASSIVE"
    return settings


def cuda_devices() -> tuple[str, ...]:
    """Name the CUDA devices that this process may use, without loading torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    listing = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
    )
    lines = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return tuple(str(index) for index in range(len(lines)))


def _log_level() -> int:
    return logging.getLogger("latentloom").getEffectiveLevel()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_done(future: PrefectFuture[Any]) -> bool:
    wrapped = getattr(future, "wrapped_future", None)
    return bool(wrapped.done()) if wrapped is not None else future.state.is_final()


def _error(future: PrefectFuture[Any]) -> BaseException | None:
    """Tell why a finished future did not complete, or None if it did."""
    wrapped = getattr(future, "wrapped_future", None)
    try:
        state = wrapped.result() if wrapped is not None else future.state
        if state.is_completed():
            return None
        future.result(raise_on_failure=True)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return _explained(error)
    return StageError(f"A task run ended as {state.name}, neither completed nor failed.")


def _explained(error: BaseException) -> BaseException:
    if type(error).__name__ != "KilledWorker":
        return error
    explained = StageError(
        "Worker processes died again and again at the same work, most often for lack of memory. Run"
        " the same command again with fewer --workers; finished chunks are kept."
    )
    explained.__cause__ = error
    return explained
