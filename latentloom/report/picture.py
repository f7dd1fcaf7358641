"""Pictures of results: the source above the edited video, at moments spread over it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from latentloom.errors import UsageError

Frame = NDArray[np.uint8]
GAP = 4
SOFTWARE = "latentloom"
"""Marks pictures as ours, so that a later report may replace them."""
MIN_HEIGHT = 96
"""Smaller frames are enlarged to this by a whole factor, so that a person sees something."""


def side_by_side(rows: Sequence[Sequence[Frame]], path: Path) -> None:
    """Write rows of frames as one picture, each row at the size of the first.

    Args:
        rows: Frames ``(H, W, 3)``, uint8; the first row is the source's.
        path: Where the picture goes; its suffix chooses the format.

    Raises:
        UsageError: If a file that is not ours lies there, it cannot be written, or no format has its suffix.
    """
    check_ours(path, "give --picture another path")
    save_picture(draw_sheet(rows), path, "give --picture a path such as out.png")


def check_ours(path: Path, advice: str) -> None:
    """Refuse a path at which a file lies that is no picture of ours.

    Raises:
        UsageError: With the advice.
    """
    if path.is_file() and not _is_ours(path):
        raise UsageError(f"{path} exists and is not ours; {advice}")


def save_picture(picture: Image.Image, path: Path, advice: str) -> None:
    """Write a picture that is marked as ours, whole or not at all.

    Raises:
        UsageError: If it cannot be written; with the advice.
    """
    draft = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = SOFTWARE
        try:
            picture.save(draft, exif=exif)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    # Pillow raises ValueError where no format has the suffix.
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}; {advice}") from error


def sheet_as_jpeg(rows: Sequence[Sequence[Frame]], *, longest: int = 960) -> bytes:
    """Return rows of frames as a small JPEG whose longer side has at most so many pixels."""
    sheet, data = draw_sheet(rows), BytesIO()
    sheet.thumbnail((longest, longest))
    sheet.save(data, "JPEG", quality=80)
    return data.getvalue()


def draw_sheet(rows: Sequence[Sequence[Frame]]) -> Image.Image:
    """Draw rows of frames under each other; see ``side_by_side``."""
    first = rows[0][0]
    factor = max(1, -(-MIN_HEIGHT // first.shape[0]))
    height, width = first.shape[0] * factor, first.shape[1] * factor
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB",
        (columns * (width + GAP) + GAP, len(rows) * (height + GAP) + GAP),
        (255, 255, 255),
    )
    for y, row in enumerate(rows):
        for x, frame in enumerate(row):
            resample = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
            picture = Image.fromarray(frame).resize((width, height), resample)
            sheet.paste(picture, (GAP + x * (width + GAP), GAP + y * (height + GAP)))
    return sheet


def _is_ours(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            return picture.getexif().get(ExifTags.Base.Software) == SOFTWARE
    except (OSError, UnidentifiedImageError):
        return False
