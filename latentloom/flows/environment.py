"""Make Prefect and Dask quiet and offline, before the first import: they read settings once."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # The server keeps our log lines; the console shows none of Prefect's, tracebacks least of all.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "latentloom",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "DASK_LOGGING__DISTRIBUTED": "critical",
}


def quiet_environment() -> None:
    """Set what keeps both silent and offline, wherever the user has set nothing else."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    bypass_proxies_for_loopback()


def bypass_proxies_for_loopback() -> None:
    """Keep a proxy that the machine is told to use away from the server on this machine."""
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if "127.0.0.1" not in hosts:
            os.environ[name] = ",".join([*hosts, "127.0.0.1"])


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
