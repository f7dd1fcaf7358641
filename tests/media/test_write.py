from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.errors import MediaError
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


def test_clip_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="needs frames"):
        write_video(tmp_path / "clip.mp4", [], 8)
