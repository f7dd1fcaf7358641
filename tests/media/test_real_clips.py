"""Real clips from a folder that LATENTLOOM_TEST_MEDIA names; skipped without it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentloom.media.decode import FrameReader
from latentloom.media.encode import encode_segment
from latentloom.media.join import join_segments
from latentloom.media.probe import probe
from latentloom.schemas.media import EncodeSettings

FOLDER = os.environ.get("LATENTLOOM_TEST_MEDIA")
pytestmark = pytest.mark.skipif(not FOLDER, reason="LATENTLOOM_TEST_MEDIA names no folder")


@pytest.fixture
def real() -> Callable[[str], Path]:
    return lambda name: Path(FOLDER or "") / name


@pytest.mark.parametrize(
    "name", ["chaplin.mp4", "nasa_13013.mp4", "rotated_90.mov", "swans.mp4", "car-turn.mp4"]
)
def test_index_and_chunks_of_a_real_clip(real: Callable[[str], Path], name: str) -> None:
    info = probe(real(name))
    with av.open(str(real(name))) as container:
        stream: Any = container.streams[info.stream]
        assert list(info.pts) == [frame.pts for frame in container.decode(stream)]
    reader = FrameReader(real(name), info, width=64, height=64)
    whole = reader.read(0, info.num_frames)
    for size in (4, 7, 16):
        parts = [
            reader.read(at, min(at + size, info.num_frames))
            for at in range(0, info.num_frames, size)
        ]
        assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("name", "start", "stop", "codecs"),
    [
        ("nasa_13013.mp4", 0, 325, ("aac", "aac")),
        ("nasa_13013.mp4", 60, 270, ("aac", "aac")),
        ("chaplin.mp4", 50, 200, ("mp3float",)),
    ],
)
def test_cut_of_a_real_clip_keeps_times_and_sound(
    real: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    start: int,
    stop: int,
    codecs: tuple[str, ...],
) -> None:
    info, target = probe(real(name)), tmp_path / "out.mp4"
    reader = FrameReader(real(name), info, width=64, height=64)
    settings = EncodeSettings(width=64, height=64, time_base=info.time_base, color=info.color)
    segments = (
        encode_segment([reader.read(at, end)], info.pts[at:end], settings)
        for at in range(start, stop, 100)
        for end in [min(at + 100, stop)]
    )
    report = join_segments(
        segments, target, source=real(name), info=info, first_frame=start, last_frame=stop,
        audio="copy", settings=settings, metadata={},
    )  # fmt: skip
    made = probe(target)
    assert made.time_base == info.time_base
    assert list(made.pts) == [pts - info.pts[start] for pts in info.pts[start:stop]]
    assert report.audio == codecs
    offset = float(info.pts[start] * info.tick)
    for old, new in zip(info.audio, made.audio, strict=True):
        assert max_shift(real(name), old.index, target, new.index, offset) < 0.002


def max_shift(old: Path, old_index: int, new: Path, new_index: int, offset: float) -> float:
    """Return by how much packets of the same bytes are off, in seconds."""
    times = []
    for path, index in ((old, old_index), (new, new_index)):
        with av.open(str(path)) as container:
            times.append(
                {
                    bytes(p): float(p.pts * p.time_base)
                    for p in container.demux(container.streams[index])
                    if p.pts is not None and p.size > 16
                }
            )
    shared = times[0].keys() & times[1].keys()
    assert len(shared) > 0.95 * len(times[1])
    return max(abs(times[1][data] - (times[0][data] - offset)) for data in shared)
