"""Temporary folders of a run, all in one. What a killed run leaves behind, a later one removes."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

_STALE_AFTER_SECONDS = 60.0  # a younger folder may belong to a run that has yet to lock it
_outermost: ContextVar[Path | None] = ContextVar("outermost", default=None)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder that is removed at the end, inside the one that is open already, if any."""
    if (outer := _outermost.get()) is not None:
        with tempfile.TemporaryDirectory(dir=outer, ignore_cleanup_errors=True) as inner:
            yield Path(inner)
        return
    _remove_stale()
    folder = Path(tempfile.mkdtemp(prefix=_prefix()))
    token = _outermost.set(folder)
    try:
        with FileLock(folder / "lock"):
            yield folder
    finally:
        _outermost.reset(token)
        shutil.rmtree(folder, ignore_errors=True)


def outermost_scratch() -> Path:
    """Name the folder that holds all others of this run, for whoever tidies up after its death."""
    folder = _outermost.get()
    if folder is None:
        raise RuntimeError("No scratch folder is open; use scratch_folder().")
    return folder


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
