"""Single pictures, and folders of them that are read like a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from latentloom.errors import MediaError
from latentloom.media.decode import FrameReader, Frames
from latentloom.media.probe import probe
from latentloom.schemas.media import Fit

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
"""Files of a folder that count as frames."""


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder in the order of their names.

    Raises:
        MediaError: There is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise MediaError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def read_images(
    paths: Sequence[Path], *, width: int, height: int, fit: Fit, high_bit_depth: bool = False
) -> Frames:
    """Read images as (F, H, W, 3) RGB; see ``FrameReader`` for size and depth.

    Raises:
        MediaError: One is missing or damaged.
    """
    frames: list[Frames] = []
    for path in paths:
        reader = FrameReader(
            path, probe(path), width=width, height=height, fit=fit, high_bit_depth=high_bit_depth
        )
        with reader:
            frames.append(reader.read(0, 1))
    return cast(Frames, np.concatenate(frames))
