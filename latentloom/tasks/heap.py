"""Give back the memory that finished chunks leave free between those that are in flight."""

from __future__ import annotations

import ctypes
import time
from typing import Final

SECONDS_BETWEEN: Final = 1.0
"""Pages that come back have to be cleared: for small chunks more work than the chunk."""
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_trimmed = time.monotonic()


def give_back_memory() -> None:
    """Give what is free on glibc's heap back to the system, unless that was done a moment ago.

    Chunks of all sizes come and go; holes between them would add up over hours. Other C libraries see to
    it themselves.
    """
    global _trimmed
    now = time.monotonic()
    if _trim is None or now - _trimmed < SECONDS_BETWEEN:
        return
    _trimmed = now
    _trim(0)
