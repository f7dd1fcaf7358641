"""Scene cuts that are found: where windows end, and that a video is looked through once."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.flows import resolve
from latentloom.media.scenes import find_cuts
from latentloom.media.write import write_video
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.runs import compile_small

CUT, NUM_FRAMES = 9, 20


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes that move to the right, then others that move down."""
    path = tmp_path_factory.mktemp("scenes") / "clip.mp4"
    down, right = np.mgrid[:64, :96]
    frames = [
        (right * 5 + t) % 256 if t < CUT else 255 - (down * 3 + t) % 128 for t in range(NUM_FRAMES)
    ]
    pixels = np.repeat(np.stack(frames)[..., None], 3, axis=-1)
    write_video(path, pixels.astype(np.uint8), Fraction(8))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def planned(store: Store, clip: Path, **windows: Any) -> Plan:
    return compile_small(store, clip, None, windows={"size": 8, "overlap": 2} | windows)


def test_found_cut_reaches_the_plan_and_no_window_crosses_it(store: Store, clip: Path) -> None:
    plan = planned(store, clip, scenes="auto")
    assert plan.facts.source.cuts == (CUT,)
    windows = [(chunk.start, chunk.stop) for chunk in plan.by_name["fuse"].chunks]
    assert windows == [(0, 8), (1, 9), (9, 17), (12, 20)]
    given = planned(store, clip, scenes=[CUT / 8])
    assert [chunk.key for chunk in given.by_name["fuse"].chunks] == [
        chunk.key for chunk in plan.by_name["fuse"].chunks
    ]
    assert planned(store, clip).facts.source.cuts == ()


def test_a_video_is_looked_through_once_for_each_threshold_wherever_it_lies(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = list[float]()

    def counted(path: Path, info: Any, *, threshold: float) -> tuple[int, ...]:
        looked.append(threshold)
        return find_cuts(path, info, threshold=threshold)

    monkeypatch.setattr(resolve, "find_cuts", counted)
    first = planned(store, clip, scenes="auto")
    moved = Path(shutil.copy(clip, tmp_path / "moved.mp4"))
    again = planned(store, moved, scenes="auto")
    assert again.facts.source.cuts == first.facts.source.cuts == (CUT,)
    assert len(looked) == 1
    assert planned(store, clip, scenes="auto", scene_threshold=100).facts.source.cuts == ()
    assert len(looked) == 2
