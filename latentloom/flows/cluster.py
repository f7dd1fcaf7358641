"""Dask workers of a flow: a cluster on this machine, or workers of a scheduler that runs already.

One process and one resource ``GPU`` for each device; workers without one take what needs none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, WorkerPlugin

from latentloom.errors import LatentloomError, UsageError
from latentloom.flows.credentials import use_credentials
from latentloom.flows.environment import environment, prefect_settings
from latentloom.flows.need import Need
from latentloom.flows.routing import GPU, resources_needed
from latentloom.flows.runs import read_plan
from latentloom.flows.scratch import scratch_folder
from latentloom.flows.worker import LOG_LEVEL
from latentloom.schemas.plan import Plan
from latentloom.schemas.settings import read_settings
from latentloom.storage.store import Store
from latentloom.tasks.stop import forget_stop, stop_requested, stop_run

_LOOPBACK = "127.0.0.1"
_ALLOWED_DEATHS = 2  # of workers on one task, before the task is given up
_CONNECT_SECONDS = 20.0
_WORKERS_SECONDS = 60.0
_ADDRESS = re.compile(r"(tcp|tls)://(\[[^\]]+\]|[^\[\]:/]+):\d+")
_log = logging.getLogger("latentloom")


class Cluster:
    """The workers behind a scheduler."""

    def __init__(self, address: str, client: Client) -> None:
        self.address = address
        self._client = client

    @property
    def threads(self) -> int:
        """Return how many task groups run at once."""
        return sum(worker["nthreads"] for worker in self._workers())

    @property
    def threads_without_device(self) -> int:
        """Return how many of these are on workers without a device."""
        return sum(w["nthreads"] for w in self._workers() if GPU not in w["resources"])

    @contextmanager
    def prepared(
        self, store: str, plan: Plan, run: str, need: Need
    ) -> Iterator[Callable[[], None]]:
        """Have the workers, those that come later too, make ready for a run.

        Each opens the store, and loads the models of the stages that it may run.

        Yields:
            What to call now and then, so that workers on other machines learn of a stop.

        Raises:
            LatentloomError: If a worker cannot, or has other versions than the plan asks for.
            UsageError: If there is a stage that no worker may run.
        """
        stages = [name for name, indices in need.items() if indices]
        own = [name for name in stages if not plan.by_name[name].transient]
        self.check(resources_needed(plan, own, read_settings().routes))
        self._client.register_plugin(Preparation(store, run, tuple(stages)))
        told = False

        def pass_on_stop() -> None:
            nonlocal told
            if stop_requested() and not told:
                told = True
                self._client.run(stop_run, run, on_error="ignore")

        try:
            yield pass_on_stop
        finally:
            with suppress(OSError):
                self._client.unregister_worker_plugin(_plugin_name(run))

    def check(self, needed: Mapping[frozenset[str], str]) -> None:
        """Refuse stages that no worker may run; their tasks would wait for ever.

        Args:
            needed: Sets of resources, each with a stage that asks for it.

        Raises:
            UsageError: If no worker has one of the sets.
        """
        offered = [frozenset(worker["resources"]) for worker in self._workers()]
        for resources, stage in needed.items():
            if not any(resources <= offer for offer in offered):
                wanted = " and ".join(sorted(resources))
                flags = " ".join(f"{name}=1" for name in sorted(resources))
                raise UsageError(
                    f"stage {stage!r} is for workers with the resource {wanted}, and none of the"
                    f" {len(offered)} at {self.address} has it; start one with"
                    f' `dask worker --resources "{flags}"`, or change routes in the config file'
                )

    def _workers(self) -> list[dict[str, Any]]:
        return list(self._client.scheduler_info(n_workers=-1)["workers"].values())


class Preparation(WorkerPlugin):
    """What a worker does before its first task of a run."""

    def __init__(self, store: str, run: str, stages: tuple[str, ...]) -> None:
        self.name = _plugin_name(run)
        self.store, self.run, self.stages = store, run, stages
        self.server = os.environ["PREFECT_API_URL"]

    async def setup(self, worker: Worker) -> None:
        """Check what the worker has, and put the loading of models before its first task of the run.

        Raises:
            LatentloomError: If the worker cannot take part.
        """
        try:
            plan = await asyncio.to_thread(self.check)
        except LatentloomError as error:
            raise type(error)(f"worker {worker.address}: {error}") from error
        if plan.facts.machine.device == "cpu" or GPU in worker.state.total_resources:
            # In the thread of its tasks, behind those of other runs: nobody waits for them here.
            worker.executors["default"].submit(_load, plan, self.stages)

    def check(self) -> Plan:
        """Return the plan if this process can work on it."""
        forget_stop(self.run)
        _check_server(self.server)
        with prefect_settings():
            use_credentials()
        plan = read_plan(Store.open(self.store, create=False), self.run)
        _check_versions(plan)
        return plan


def check_address(address: str) -> None:
    """Refuse what is no address of a scheduler, and workers that last with a server that does not.

    Prefect's connections of a process are to the first server that it met, and stay so.

    Raises:
        UsageError: With what to give instead.
    """
    if _ADDRESS.fullmatch(address) is None:
        raise UsageError(f"scheduler {address!r} is no address such as tcp://10.0.0.5:8786")
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(
            f"workers of {address} outlive the run, and need a server that does, too: set"
            " PREFECT_API_URL to one that all of them reach (`prefect server start` starts one)"
        )


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """Use the workers of a scheduler that runs already.

    Raises:
        LatentloomError: If nobody answers, or no worker comes.
    """
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise LatentloomError(
            f"the scheduler at {address} cannot be reached ({type(error).__name__});"
            " `dask scheduler` starts one"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
        except TimeoutError as error:
            raise LatentloomError(
                f"the scheduler at {address} has no workers; start them with"
                f" `dask worker {address} --nthreads 1`"
            ) from error
        yield Cluster(address, client)


@contextmanager
def local_cluster(
    workers: int, threading: Mapping[str, str], *, devices: Sequence[str] = (), log_level: int
) -> Iterator[Cluster]:
    """Start worker processes on this machine, on loopback only, that die with this process.

    Args:
        workers: How many.
        threading: Variables that set the number of torch's threads.
        devices: CUDA devices; each of the first workers gets one, the others get none.
        log_level: Of our log lines in workers.

    Yields:
        The workers.
    """
    with (
        scratch_folder() as folder,
        environment({**threading, LOG_LEVEL: str(log_level)}),  # Dask changes some for good
        dask.config.set(_dask_settings(threading, folder)),
        SpecCluster(
            scheduler={
                "cls": Scheduler,
                "options": {"host": _LOOPBACK, "dashboard_address": f"{_LOOPBACK}:0"},
            },
            workers={
                index: {"cls": Nanny, "options": worker_options(index, devices, folder)}
                for index in range(workers)
            },
            silence_logs=logging.CRITICAL,
        ) as cluster,
        connected(str(cluster.scheduler_address)) as found,
    ):
        yield found


def worker_options(index: int, devices: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return how a worker of a local cluster is started."""
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
    if index < len(devices):
        options["env"] = {"CUDA_VISIBLE_DEVICES": devices[index]}
        options["resources"] = {GPU: 1}
    elif devices:
        options["env"] = {"CUDA_VISIBLE_DEVICES": ""}
    return options


@contextmanager
def routed(resources: Iterable[str]) -> Iterator[None]:
    """Have what is submitted in the block run where there is one of each resource."""
    # dask does not list it among what it exports.
    with dask.annotate(  # type: ignore[attr-defined]
        resources=dict.fromkeys(resources, 1)
    ):
        yield


def _dask_settings(threading: Mapping[str, str], folder: Path) -> dict[str, Any]:
    return {
        "temporary-directory": str(folder),
        # Without Dask's MALLOC_TRIM_THRESHOLD_: giving back memory after every layer halves a model's speed.
        "distributed.nanny.pre-spawn-environ": dict(threading),
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


def _check_server(server: str) -> None:
    """Refuse to be a worker that is bound to another Prefect server."""
    known = os.environ.setdefault("PREFECT_API_URL", server)
    if known != server:
        raise UsageError(
            f"it reports to the Prefect server {known}, the run to {server}; start both with one"
            " PREFECT_API_URL"
        )


def _check_versions(plan: Plan) -> None:
    """Refuse to be a worker whose results could differ in the last bits."""
    machine = plan.facts.machine
    for package, wanted in (("torch", machine.torch), ("av", machine.av)):
        if version(package) != wanted:
            raise UsageError(
                f"it has {package} {version(package)}, the plan was made for {wanted}; install one"
                " version everywhere, since the last bits depend on it"
            )


def _load(plan: Plan, stages: tuple[str, ...]) -> None:
    """Load models, unless flows take turns; what is wrong with one, the stage that uses it says better."""
    from latentloom.flows.slots import is_limited
    from latentloom.tasks.preload import preload

    try:
        with prefect_settings():
            limited = is_limited(plan.facts.machine.device)
        if not limited:
            preload(plan, stages)
    except Exception as error:
        _log.debug("models are not loaded ahead: %s", error)


def _plugin_name(run: str) -> str:
    return f"latentloom-{run}"
