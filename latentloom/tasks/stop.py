"""Tell a task that its run should stop after the chunk at hand.

A file, not a signal: it reaches every worker process, and nothing is cut off half way.
"""

import os
from pathlib import Path

STOP_FILE = "LATENTLOOM_STOP_FILE"


def stop_requested() -> bool:
    """Look whether the run has been asked to stop; call it between chunks."""
    path = os.environ.get(STOP_FILE)
    return bool(path) and Path(str(path)).exists()
