"""Outlast a Prefect server that is away, such as while it is restarted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from latentloom.tasks.stop import stop_requested

OUTAGE_SECONDS = 600.0
PAUSE_SECONDS = 2.0

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def outlast(work: Callable[[], _Result], *, seconds: float = OUTAGE_SECONDS) -> _Result:
    """Do some work, again from its beginning whenever the server could not be reached.

    Prefect's own clients try again, but not one that has never reached the server: what is begun while a
    server is away would fail at once, and a video be blamed for it.

    Args:
        work: May be done twice.
        seconds: After which a failure is the last.

    Raises:
        httpx.TransportError: If it was away for too long, or the user asked to stop.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return work()
        except httpx.TransportError as error:
            if stop_requested() or time.monotonic() > deadline:
                raise
            _log.warning("the Prefect server is away (%s); trying again", type(error).__name__)
            time.sleep(PAUSE_SECONDS)
