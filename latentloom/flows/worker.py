"""What a worker process does before its first work. Dask knows the function by its name."""

import logging
import os
import signal
import sys
import warnings

from latentloom.flows.environment import keep_heap_small

LOG_LEVEL = "LATENTLOOM_LOG_LEVEL"


def dask_setup(worker: object) -> None:
    """Begin as a worker of Dask."""
    behave_as_worker()


def behave_as_worker() -> None:
    """Behave as the main process does: leave Ctrl-C to it, show our log lines and nothing else."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_heap_small()
    if not os.environ.get("LATENTLOOM_DEBUG"):
        warnings.simplefilter("ignore")
    level = int(os.environ.get(LOG_LEVEL, logging.WARNING))
    logger = logging.getLogger("latentloom")
    logger.setLevel(level)
    if level < logging.WARNING:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
