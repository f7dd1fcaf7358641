"""What an operation may tell the parent while it works."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Answer = tuple[dict[str, Any], bytes]


class Channel(Protocol):
    """The way back to the parent."""

    def progress(self, frame: int) -> None:
        """Say that frame ``frame`` is being worked on; cheap enough to call for each."""

    def frame(self, slot: int, frame: int, array: Array) -> None:
        """Hand over the frame with this index, for this place of the parent's array."""
