"""Make Prefect and Dask quiet and offline, before the first import: they read settings once. And the heap."""

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # A lasting server keeps our log lines; the console shows none of Prefect's, tracebacks least of all.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "latentloom",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "DASK_LOGGING__DISTRIBUTED": "critical",
}
# What each variable of glibc sets in processes that start later, mallopt sets in this one.
_HEAP = (
    ("MALLOC_ARENA_MAX", -8, 1),
    ("MALLOC_MMAP_THRESHOLD_", -3, 4 << 20),
    # Else, with a fixed threshold, the heap's end would go back with every layer, and come again.
    ("MALLOC_TRIM_THRESHOLD_", -1, 64 << 20),
)
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Torch's: pages of a tensor's memory are cleared 2 MiB at a time, as numpy's are anyway."""
# Python's own helper process complains of what a run that was stopped at once left to it.
_RESOURCE_TRACKER = "ignore:resource_tracker:UserWarning"


def quiet_environment() -> None:
    """Set what keeps both silent and offline, wherever the user has set nothing else."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    bypass_proxies_for_loopback()
    _append("PYTHONWARNINGS", _RESOURCE_TRACKER)


def bypass_proxies_for_loopback() -> None:
    """Keep a proxy that the machine is told to use away from the server on this machine."""
    _append("NO_PROXY", "127.0.0.1")
    _append("no_proxy", "127.0.0.1")


def keep_heap_small() -> None:
    """Have glibc give large arrays back at once, and keep one heap for the threads of a process.

    For this process and those that it starts. By default arrays of up to 32 MiB lie in the heap, and leave
    holes; and chunks pass from the thread that reads to the one that computes and the one that commits: with
    heaps of their own each keeps what the others could use. `benchmarks/long_video.py` tells the difference
    where the variables have other numbers: what the user has set stays. Other C libraries are left alone.
    Torch is told to ask for huge pages, if it has not allocated yet: large arrays are mapped faster.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for name, parameter, value in _HEAP:
        if name not in os.environ:
            os.environ[name] = str(value)
            if mallopt is not None:
                mallopt(parameter, value)
    os.environ.setdefault(_HUGE_PAGES, "1")


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Change variables for this process and the ones that it starts, and put them back."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def prefect_settings(*, heartbeats: bool = True) -> Iterator[None]:
    """Let Prefect read the environment as it is now, even if it was imported long before.

    Args:
        heartbeats: of flow runs. Ending them costs up to a second a flow run, and a server that
            dies with the run has nobody to tell.
    """
    from prefect.context import SettingsContext, get_settings_context
    from prefect.settings import Settings

    settings = Settings()
    if not heartbeats:
        settings = settings.copy_with_update(updates={"flows.heartbeat_frequency": None})
    with SettingsContext(profile=get_settings_context().profile, settings=settings):
        yield


def _append(name: str, item: str) -> None:
    """Add an item to a variable that holds a comma-separated list."""
    items = [part for part in os.environ.get(name, "").split(",") if part]
    if item not in items:
        os.environ[name] = ",".join([*items, item])
