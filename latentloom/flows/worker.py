"""What a Dask worker does before its first task. Dask knows the function by its name."""

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C to the main process, which asks for a stop between chunks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
