"""Temporary folders of a run. A killed run leaves one behind, and the next run removes it."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_STALE_AFTER_SECONDS = 60.0  # a younger folder may belong to a run that has yet to lock it


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder that is removed at the end, or by a later run if this process is killed."""
    _remove_stale()
    folder = Path(tempfile.mkdtemp(prefix=_prefix()))
    try:
        with FileLock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"latentloom-{os.getuid()}-"


def _remove_stale() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        try:
            is_old = time.time() - folder.stat().st_mtime > _STALE_AFTER_SECONDS
            if is_old:
                with FileLock(folder / "lock", timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)
        except (OSError, Timeout):
            continue  # somebody lives there, or another run was faster
