"""Find out how much memory there is: the machine's, within what a control group allows this process."""

from __future__ import annotations

from pathlib import Path

import psutil

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of version 2 and version 1, below the mounted hierarchy."""
CGROUPS = Path("/sys/fs/cgroup")


def memory_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the memory that processes here may have together."""
    return min(psutil.virtual_memory().total, _limit(cgroups) or psutil.virtual_memory().total)


def free_memory_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the memory that is not taken just now."""
    return min(psutil.virtual_memory().available, memory_bytes(cgroups))


def _limit(cgroups: Path) -> int | None:
    """Return the limit of the control group, where one is set."""
    for name in _LIMITS:
        try:
            return int((cgroups / name).read_text())
        except (OSError, ValueError):
            continue  # not of this version, or "max"
    return None
