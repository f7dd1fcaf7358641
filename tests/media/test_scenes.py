from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentloom.media import scenes
from latentloom.media.probe import probe
from latentloom.media.scenes import find_cuts
from latentloom.media.write import write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of moving stripes: frames 0-19, 20-33 and 34-59."""
    path = tmp_path_factory.mktemp("scenes") / "clip.mp4"
    down, right = np.mgrid[:64, :96]
    pictures = {
        0: lambda t: (right * 5 + t) % 256,
        20: lambda t: 255 - (down * 3 + t) % 128,
        34: lambda t: (right * down // 8 + 2 * t) % 90,
    }
    frames = []
    for t in range(60):
        scene = max(start for start in pictures if start <= t)
        frames.append(np.repeat(pictures[scene](t)[..., None], 3, axis=2))
    write_video(path, np.stack(frames).astype(np.uint8), Fraction(10))
    return path


def test_cuts_are_the_first_frames_of_scenes(clip: Path) -> None:
    assert find_cuts(clip, probe(clip), threshold=10) == (20, 34)


@pytest.mark.parametrize("at_once", [1, 7, 20, 21])
def test_cuts_do_not_depend_on_how_the_search_is_cut(
    clip: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenes, "_AT_ONCE", at_once)
    assert find_cuts(clip, probe(clip), threshold=10) == (20, 34)


def test_high_threshold_finds_nothing(clip: Path) -> None:
    assert find_cuts(clip, probe(clip), threshold=100) == ()
