"""A picture of the shots of a video: for each a row of its source above a row of what is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from latentloom.report.picture import GAP, Frame, save_picture

MARGIN = 12
LINE = 22
FONT_SIZE = 14
SHEET_WIDTH = 1600
"""Pixels that blocks are wrapped at."""
LARGE, SMALL = 224, 96
"""Longer side of a frame in pictures of few and of many shots."""
MANY_SHOTS = 24
WHITE, BLACK, GREY = (255, 255, 255), (20, 20, 20), (235, 235, 235)


@dataclass(frozen=True)
class ShotPictures:
    """A few frames of one shot."""

    title: str
    sources: Sequence[Frame]
    """Frames ``(H, W, 3)`` of the source, uint8."""
    made: Sequence[Frame | None]
    """What is made of them, at any size; nothing where it is not at hand."""


def draw_shots(title: str, shots: Iterable[ShotPictures], *, num_shots: int) -> Image.Image:
    """Draw the blocks of shots, wrapped into lines; only small copies of the frames are held.

    Args:
        title: Written above all.
        shots: The shots, drawn one by one.
        num_shots: How many there are.
    """
    longest = LARGE if num_shots <= MANY_SHOTS else SMALL
    blocks = [_block(shot, longest) for shot in shots]
    places, size = _wrapped([block.size for block in blocks], wide=_width(title) + 2 * MARGIN)
    sheet = Image.new("RGB", size, WHITE)
    _write(sheet, (MARGIN, MARGIN), title)
    for block, place in zip(blocks, places, strict=True):
        sheet.paste(block, place)
    return sheet


def save_shots(sheet: Image.Image, path: Path) -> None:
    """Write the picture; see `report.picture.save_picture`."""
    save_picture(sheet, path, "choose another output.uri")


def _block(shot: ShotPictures, longest: int) -> Image.Image:
    sources = [_scaled(frame, longest) for frame in shot.sources]
    width, height = sources[0].size
    block_width = max(len(sources) * (width + GAP) - GAP, _width(shot.title))
    block = Image.new("RGB", (block_width, LINE + 2 * height + GAP), WHITE)
    _write(block, (0, 0), shot.title)
    for column, (source, made) in enumerate(zip(sources, shot.made, strict=True)):
        x = column * (width + GAP)
        block.paste(source, (x, LINE))
        below = Image.new("RGB", (width, height), GREY) if made is None else _fitted(made, source)
        block.paste(below, (x, LINE + height + GAP))
    return block


def _scaled(frame: Frame, longest: int) -> Image.Image:
    """Shrink a large frame; enlarge a small one by a whole factor, so that its pixels are seen."""
    picture = Image.fromarray(frame)
    side = max(picture.size)
    if side > longest:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        return picture
    factor = longest // side
    return picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )


def _fitted(frame: Frame, like: Image.Image) -> Image.Image:
    """Show a frame of any size, such as an enlarged or grown one, in the room of another."""
    picture = Image.fromarray(frame)
    factor = min(like.width / picture.width, like.height / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    whole = factor >= 1 and factor.is_integer()
    resample = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    room = Image.new("RGB", like.size, WHITE)
    room.paste(picture.resize(size, resample), (0, 0))
    return room


def _wrapped(
    sizes: Sequence[tuple[int, int]], *, wide: int
) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return where blocks go, line by line, and the size of the sheet."""
    places, x, y, line, right = [], MARGIN, 2 * MARGIN + LINE, 0, wide
    for width, height in sizes:
        if x > MARGIN and x + width + MARGIN > SHEET_WIDTH:
            x, y, line = MARGIN, y + line + MARGIN, 0
        places.append((x, y))
        right, line = max(right, x + width + MARGIN), max(line, height)
        x += width + MARGIN
    return places, (right, y + line + MARGIN)


def _write(picture: Image.Image, place: tuple[int, int], text: str) -> None:
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(picture).text(place, text, fill=BLACK, font=font)


def _width(text: str) -> int:
    return int(ImageFont.load_default(FONT_SIZE).getlength(text)) + 1
