"""Keys of windows that meet at every step: a change reaches one window further with each step."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.windows import plan_windows
from latentloom.schemas.base import digest
from latentloom.schemas.step_keys import StepKeys, near

NUM_STEPS = 4


@st.composite
def _windows(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Windows of one to three shots that follow one another."""
    size = draw(st.integers(1, 9))
    overlap = draw(st.integers(0, size - 1))
    windows, start = [], draw(st.integers(0, 20))
    for length in draw(st.lists(st.integers(1, 60), min_size=1, max_size=3)):
        windows += plan_windows(start, start + length, size=size, overlap=overlap)
        start += length
    return windows


def keys_of(bases: list[str], windows: list[tuple[int, int]]) -> list[list[str]]:
    starts, stops = zip(*windows, strict=True)
    keys = StepKeys(bases, starts, stops)
    return [[keys.key(row, i) for i in range(len(bases))] for row in range(NUM_STEPS)]


@given(_windows(), st.data())
def test_change_reaches_windows_that_share_frames_one_further_each_step(
    windows: list[tuple[int, int]], data: st.DataObject
) -> None:
    bases = [digest(index) for index in range(len(windows))]
    changed = data.draw(st.integers(0, len(windows) - 1))
    before = keys_of(bases, windows)
    after = keys_of([*bases[:changed], digest("other"), *bases[changed + 1 :]], windows)
    reached = {changed}
    for old, new in zip(before, after, strict=True):
        assert {i for i in range(len(bases)) if old[i] != new[i]} == reached
        reached = {
            i
            for i, (start, stop) in enumerate(windows)
            if any(start < windows[j][1] and windows[j][0] < stop for j in reached)
        }


@given(_windows())
def test_every_step_of_every_window_has_a_key_of_its_own(windows: list[tuple[int, int]]) -> None:
    bases = [digest(index) for index in range(len(windows))]
    keys = [key for row in keys_of(bases, windows) for key in row] + bases
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {64}


@given(_windows())
def test_near_windows_are_those_that_share_a_frame(windows: list[tuple[int, int]]) -> None:
    starts, stops = zip(*windows, strict=True)
    for index, (start, stop) in enumerate(windows):
        shared = [i for i, (a, b) in enumerate(windows) if a < stop and start < b]
        assert list(near(starts, stops, index)) == shared


def test_threads_that_begin_a_step_together_get_the_keys_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bases, windows = [digest(index) for index in range(2)], [(0, 4), (2, 6)]
    expected = keys_of(bases, windows)
    meeting, next_row = threading.Barrier(2), StepKeys._next_row

    def meet(keys: StepKeys) -> bytes:
        made = next_row(keys)
        with suppress(threading.BrokenBarrierError):
            meeting.wait(timeout=0.2)
        return made

    keys = StepKeys(bases, *zip(*windows, strict=True))
    monkeypatch.setattr(StepKeys, "_next_row", meet)
    with ThreadPoolExecutor(2) as pool:
        first = [pool.submit(keys.key, 0, index) for index in range(2)]
    assert [key.result() for key in first] == expected[0]
    assert [[keys.key(row, i) for i in range(2)] for row in range(NUM_STEPS)] == expected
