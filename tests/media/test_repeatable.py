"""The same frames give the same bytes, at sizes where encoders are known to stray."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from latentloom.media.encode import encode_segment
from latentloom.schemas.media import EncodeSettings, VideoCodec


@pytest.mark.parametrize(("codec", "size"), [("h264", 64), ("h264", 176), ("h265", 64)])
def test_encoding_thirty_times_gives_one_file(codec: VideoCodec, size: int) -> None:
    down, right, frame = np.mgrid[:size, :size, :8].transpose(0, 3, 1, 2)
    pixels = np.stack([right * 4 + down * 3 + frame * 5, frame * 9, down * 6], axis=-1) % 256
    settings = EncodeSettings(
        codec=codec,
        width=size,
        height=size,
        time_base=(1, 8),
        frame_rate=(8, 1),
        crf=18,
        preset="medium",
    )
    frames = pixels.astype(np.uint8)
    files = {
        hashlib.sha256(encode_segment(iter([frames]), list(range(8)), settings)).hexdigest()
        for _ in range(30)
    }
    assert len(files) == 1
