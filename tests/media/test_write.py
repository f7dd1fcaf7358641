from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.errors import MediaError, ResourceError
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe
from latentloom.media.write import write_video


def test_rendered_clip_has_its_frames_rate_and_sound(
    tmp_path: Path, draw_frame: Callable[..., Any], read_number: Callable[[Any], int]
) -> None:
    frames = np.stack([draw_frame(number) for number in range(24)])
    sound = 0.5 * np.sin(np.arange(48000) * 0.05)
    path = tmp_path / "clip.mp4"
    report = write_video(path, frames, Fraction(24000, 1001), audio=sound)
    info = probe(path)
    assert report.num_frames == info.num_frames == 24
    assert info.frame_rate == pytest.approx(24000 / 1001)
    assert [a.codec for a in info.audio] == ["aac"]
    assert [read_number(f) for f in FrameReader(path, info).read(0, 24)] == list(range(24))
    write_video(tmp_path / "again.mp4", iter([frames]), Fraction(24000, 1001), audio=sound)
    assert (tmp_path / "again.mp4").read_bytes() == path.read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_full_disk_and_missing_folder_are_told(tmp_path: Path, suffix: str) -> None:
    full = tmp_path / f"full{suffix}"
    full.symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
    with pytest.raises(ResourceError, match="the disk is full"):
        write_video(full, noise, 25)
    with pytest.raises(MediaError, match="cannot be written: No such file"):
        write_video(tmp_path / "none" / f"a{suffix}", noise, 25)


def test_clip_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="needs frames"):
        write_video(tmp_path / "clip.mp4", [], 8)
