"""Pictures: small frames are enlarged, and a wrong path is the user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentloom.errors import UsageError
from latentloom.report.picture import GAP, side_by_side

FRAME = np.full((48, 64, 3), 7, np.uint8)


def test_rows_lie_under_each_other_enlarged(tmp_path: Path) -> None:
    side_by_side([[FRAME, FRAME], [FRAME, FRAME]], tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert sheet.size == (2 * 128 + 3 * GAP, 2 * 96 + 3 * GAP)


@pytest.mark.parametrize("name", ["sheet.none", "file/sheet.png", "folder.png"])
def test_path_that_cannot_be_written_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="give --picture a path"):
        side_by_side([[FRAME]], tmp_path / name)


@pytest.mark.parametrize("name", ["sheet.png", "sheet.jpg"])
def test_our_own_picture_is_replaced_and_another_is_not(tmp_path: Path, name: str) -> None:
    side_by_side([[FRAME]], tmp_path / name)
    side_by_side([[FRAME, FRAME]], tmp_path / name)
    with Image.open(tmp_path / name) as sheet:
        assert sheet.width > sheet.height
    Image.fromarray(FRAME).save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(UsageError, match="not ours"):
        side_by_side([[FRAME]], tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
