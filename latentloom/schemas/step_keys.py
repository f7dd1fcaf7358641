"""Keys of windows that meet at every step: derived, for a plan that listed them would hold steps x windows.

The key of a window after a step hashes the keys, after the step before, of all windows that share a frame
with it. So a change reaches one window further with each step, and not beyond a shot.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

VERSION = 1
"""Raised when what lies in the store after a step changes; older ones are then not found."""
_SIZE = hashlib.sha256().digest_size


class StepKeys:
    """The keys of one stage's windows after each step, 32 bytes each, made when they are first asked for."""

    def __init__(self, bases: Sequence[str], starts: Sequence[int], stops: Sequence[int]) -> None:
        """Begin before the first step.

        Args:
            bases: For each window the key of what it is made from.
            starts: First frames of the windows, ascending.
            stops: One past their last frames, ascending.
        """
        self._bases = [bytes.fromhex(base) for base in bases]
        self._near = [near(starts, stops, index) for index in range(len(bases))]
        self._rows: list[bytes] = []
        self._growing = threading.Lock()

    def key(self, row: int, index: int) -> str:
        """Return the key of a window after ``row + 1`` steps."""
        with self._growing:
            while len(self._rows) <= row:
                self._rows.append(self._next_row())
        return self._rows[row][_SIZE * index : _SIZE * (index + 1)].hex()

    def _next_row(self) -> bytes:
        before = self._rows[-1] if self._rows else b""
        head = f"step {VERSION} {len(self._rows)} ".encode()
        return b"".join(
            hashlib.sha256(head + base + before[_SIZE * at.start : _SIZE * at.stop]).digest()
            for base, at in zip(self._bases, self._near, strict=True)
        )


def near(starts: Sequence[int], stops: Sequence[int], index: int) -> range:
    """Return the indices of the ranges that share a frame with one of them, itself among them.

    >>> near([0, 12, 24], [16, 28, 40], 2)
    range(1, 3)
    """
    return range(bisect_right(stops, starts[index]), bisect_left(starts, stops[index]))
