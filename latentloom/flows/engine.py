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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentloom.errors import StageError
from latentloom.flows.environment import environment, quiet_environment
from latentloom.flows.interruption import interruption, listen_again
from latentloom.flows.scratch import scratch_folder
from latentloom.flows.server import api_server
from latentloom.flows.worker import LOG_LEVEL

if TYPE_CHECKING:
    from prefect.futures import PrefectFuture
    from prefect.task_runners import TaskRunner

__all__ = [
    "Failure",
    "api_server",
    "cuda_devices",
    "interruption",
    "local_cluster",
    "quiet_environment",
    "quiet_libraries",
    "session",
    "settle",
    "task_runner",
    "thread_environment",
]

_LOOPBACK = "127.0.0.1"
_ALLOWED_DEATHS = 2  # of workers on one task, before the task is given up


@dataclass(frozen=True)
class Failure:
    """A task run that did not complete: its place among the futures, and why."""

    index: int
    error: BaseException


@contextmanager
def session(
    *,
    workers: int = 1,
    threads: int = 2,
    devices: Sequence[str] = (),
    notice: Callable[[], None] | None = None,
    while_starting: Callable[[], None] | None = None,
) -> Iterator[TaskRunner[Any]]:
    """Provide all that a flow needs, and leave nothing behind.

    Args:
        workers: processes; 1 is this one.
        threads: of torch, in each worker.
        devices: CUDA devices, dealt out among the workers.
        notice: called when the user asks to stop for the first time.
        while_starting: work to do while the server starts, such as slow imports.

    Yields:
        A task runner for ``flow.with_options(task_runner=...)``.
    """
    with interruption(notice), api_server(while_starting):
        if workers == 1:
            with environment(thread_environment(1, threads)):
                yield task_runner(None)
        else:
            with local_cluster(workers, threads, devices=devices) as address:
                yield task_runner(address)


def task_runner(address: str | None) -> TaskRunner[Any]:
    """Run tasks in this process, one after the other, or on the Dask scheduler at `address`."""
    if address is None:
        from prefect.task_runners import ThreadPoolTaskRunner

        return ThreadPoolTaskRunner(max_workers=1)
    from prefect_dask.task_runners import DaskTaskRunner

    return DaskTaskRunner(address=address)


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
def local_cluster(workers: int, threads: int, *, devices: Sequence[str] = ()) -> Iterator[str]:
    """Start worker processes on this machine, on loopback only, that die with this process.

    Args:
        workers: how many; with `devices`, one for each is best.
        threads: of torch, in each worker.
        devices: CUDA devices, dealt out among the workers.

    Yields:
        The address of the scheduler.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    threading = thread_environment(workers, threads)
    with (
        scratch_folder() as folder,
        environment({**threading, LOG_LEVEL: str(_log_level())}),  # Dask changes some for good
        dask.config.set(_dask_settings(threading, folder)),
        SpecCluster(  # type: ignore[no-untyped-call]  # distributed annotates it not at all
            scheduler={
                "cls": Scheduler,
                "options": {"host": _LOOPBACK, "dashboard_address": f"{_LOOPBACK}:0"},
            },
            workers={
                index: {"cls": Nanny, "options": _worker_options(index, devices, folder)}
                for index in range(workers)
            },
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield str(cluster.scheduler_address)


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


def _dask_settings(threading: Mapping[str, str], folder: Path) -> dict[str, Any]:
    return {
        "temporary-directory": str(folder),
        "distributed.nanny.pre-spawn-environ": {**threading, "MALLOC_TRIM_THRESHOLD_": "65536"},
        "distributed.scheduler.allowed-failures": _ALLOWED_DEATHS,
        # One task at a time, so that no other is blamed, and lost, when its worker dies.
        "distributed.scheduler.worker-saturation": 1.0,
        # A worker deep in one long call is not lost: only a closed connection says so.
        "distributed.scheduler.worker-ttl": None,
        "distributed.admin.tick.limit": "1 day",
        # A task starts child processes of its own, which Dask's daemons may not.
        "distributed.worker.daemon": False,
        "distributed.worker.profile.enabled": False,
    }


def _worker_options(index: int, devices: Sequence[str], folder: Path) -> dict[str, Any]:
    options: dict[str, Any] = {
        "host": _LOOPBACK,
        "nthreads": 1,
        "memory_limit": 0,  # the plan has seen to it; Dask would pause or kill the worker
        "local_directory": str(folder),
        "dashboard": False,
        "dashboard_address": f"{_LOOPBACK}:0",
        "preload": ["latentloom.flows.worker"],
        "death_timeout": 30,
        "silence_logs": logging.CRITICAL,
    }
    if devices:
        options["env"] = {"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]}
        options["resources"] = {"GPU": 1}
    return options


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
        f"A worker process died {_ALLOWED_DEATHS + 1} times at the same work, most often for "
        "lack of memory. Run the same command again with fewer --workers; finished chunks are kept."
    )
    explained.__cause__ = error
    return explained
