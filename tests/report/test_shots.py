"""The picture of shots: what is drawn where, at any size, and wrapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentloom.errors import UsageError
from latentloom.report.picture import Frame
from latentloom.report.shots import (
    GREY,
    LARGE,
    LINE,
    MANY_SHOTS,
    MARGIN,
    SHEET_WIDTH,
    ShotPictures,
    draw_shots,
    save_shots,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour: tuple[int, int, int], height: int = 48, width: int = 64) -> Frame:
    return np.full((height, width, 3), colour, np.uint8)


def shot(made: Frame | None, source: Frame | None = None) -> ShotPictures:
    return ShotPictures("shot", [plain(RED) if source is None else source], [made])


def colour_at(sheet: Image.Image, *, row: int, height: int) -> object:
    return sheet.getpixel((MARGIN + 5, 2 * MARGIN + 2 * LINE + row * height + 10))


def test_what_is_made_lies_below_its_source_enlarged_by_a_whole_factor() -> None:
    sheet = draw_shots("title", [shot(plain(BLUE))], num_shots=1)
    height = 48 * (LARGE // 64)
    assert colour_at(sheet, row=0, height=height) == RED
    assert colour_at(sheet, row=1, height=height) == BLUE


@pytest.mark.parametrize("size", [(12, 16), (96, 128), (960, 1280), (500, 400)])
def test_frames_of_any_size_are_shown_in_the_room_of_their_source(size: tuple[int, int]) -> None:
    sheet = draw_shots("title", [shot(plain(BLUE, *size))], num_shots=1)
    assert sheet.size == draw_shots("title", [shot(plain(BLUE))], num_shots=1).size
    assert colour_at(sheet, row=1, height=48 * (LARGE // 64)) == BLUE


def test_frame_that_is_not_at_hand_is_left_out_in_grey() -> None:
    sheet = draw_shots("title", [shot(None)], num_shots=1)
    assert colour_at(sheet, row=1, height=48 * (LARGE // 64)) == GREY


def test_many_shots_are_small_and_wrapped() -> None:
    count = 4 * MANY_SHOTS
    sheet = draw_shots("title", (shot(plain(BLUE)) for _ in range(count)), num_shots=count)
    assert sheet.width <= SHEET_WIDTH
    assert sheet.height > 4 * LINE
    large = plain(RED, 2160, 3840)
    assert draw_shots("title", [shot(None, large)], num_shots=1).width < LARGE + 10 * MARGIN


def test_file_of_someone_else_and_a_folder_are_not_replaced(tmp_path: Path) -> None:
    sheet = draw_shots("title", [shot(None)], num_shots=1)
    path = tmp_path / "out" / "picture.png"
    save_shots(sheet, path)
    save_shots(sheet, path)
    assert [found.name for found in path.parent.iterdir()] == ["picture.png"]
    with pytest.raises(UsageError, match="cannot write"):
        save_shots(sheet, tmp_path / "out")
