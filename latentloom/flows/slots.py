"""A slot of a machine's device: task groups of several flows take turns on one GPU.

The slot is a global concurrency limit of the Prefect server (``prefect gcl create NAME --limit 1``).
Where there is none of the device's name, and on an embedded server, nobody waits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from prefect import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from latentloom.errors import InterruptedRunError
from latentloom.flows.server import EMBEDDED
from latentloom.schemas.settings import DEVICE_SLOT, read_settings
from latentloom.tasks.loading import forget_models
from latentloom.tasks.stop import stop_requested

_LEASE_SECONDS = 60.0
"""How long a killed process keeps its slot."""
_TRY_SECONDS = 5.0
"""How long to wait before looking whether the run has been asked to stop."""


@contextmanager
def device_slot(device: str | None) -> Iterator[None]:
    """Hold a slot of this process' device, if one is needed, while a task group runs.

    Models are dropped before the slot is given back, so that the next holder finds the device empty.

    Raises:
        InterruptedRunError: If the run was asked to stop while it waited.
    """
    if device is None or not is_limited(device):
        yield
        return
    with ExitStack() as held:
        _acquire(held, slot_name(device))
        try:
            yield
        finally:
            forget_models()


def is_limited(device: str) -> bool:
    """Tell whether there is a limit of this process' device on the server in force."""
    if os.environ.get(EMBEDDED):
        return False
    with get_client(sync_client=True) as client:
        try:
            return client.read_global_concurrency_limit_by_name(slot_name(device)).active
        except ObjectNotFound:
            return False


def slot_name(device: str) -> str:
    """Name the limit of this process' device: ``latentloom-<host>-<device>``, or as configured."""
    configured = os.environ.get(DEVICE_SLOT) or read_settings().device_slot
    if configured:
        return configured
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return f"latentloom-{socket.gethostname()}-{(visible or '0') if device == 'cuda' else device}"


def _acquire(held: ExitStack, name: str) -> None:
    while True:
        try:
            held.enter_context(
                concurrency(name, timeout_seconds=_TRY_SECONDS, lease_duration=_LEASE_SECONDS)
            )
        except TimeoutError:
            if stop_requested():
                raise InterruptedRunError(
                    f"stopped while waiting for a slot of {name}; the same command resumes"
                ) from None
        else:
            return
