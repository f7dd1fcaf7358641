"""Windows and chunks cover every frame, anchored at frame 0."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.windows import overlapping, plan_chunks, plan_windows

RULES = st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))
RANGES = st.tuples(st.integers(0, 300), st.integers(1, 300)).map(lambda r: (r[0], r[0] + r[1]))


@given(RANGES, RULES)
def test_windows_cover_every_frame_and_nothing_else(
    span: tuple[int, int], rule: tuple[int, int]
) -> None:
    windows = plan_windows(*span, size=rule[0], overlap=rule[1])
    covered = {frame for a, b in windows for frame in range(a, b)}
    assert covered == set(range(*span))


@given(RANGES, RULES)
def test_windows_are_full_unless_the_range_is_shorter(
    span: tuple[int, int], rule: tuple[int, int]
) -> None:
    windows = plan_windows(*span, size=rule[0], overlap=rule[1])
    assert {b - a for a, b in windows} == {min(rule[0], span[1] - span[0])}
    assert windows == sorted(set(windows))


@given(RANGES, RULES, st.integers(0, 60))
def test_longer_cut_keeps_all_windows_but_those_at_its_end(
    span: tuple[int, int], rule: tuple[int, int], more: int
) -> None:
    size, overlap = rule
    before = set(plan_windows(*span, size=size, overlap=overlap))
    after = set(plan_windows(span[0], span[1] + more, size=size, overlap=overlap))
    lost = before - after
    assert len(lost) <= 1
    assert all(stop == span[1] for _, stop in lost)


def test_last_window_slides_left_instead_of_shrinking() -> None:
    assert plan_windows(0, 40, size=16, overlap=4)[-1] == (24, 40)
    assert plan_windows(0, 42, size=16, overlap=4)[-1] == (26, 42)


def test_window_starts_are_multiples_of_the_stride_wherever_the_cut_begins() -> None:
    assert plan_windows(5, 40, size=16, overlap=4) == [(5, 21), (12, 28), (24, 40)]


@pytest.mark.parametrize(
    ("span", "size", "overlap"), [((5, 5), 4, 0), ((-1, 5), 4, 0), ((0, 5), 4, 4), ((0, 5), 4, -1)]
)
def test_contradictory_windows_are_refused(span: tuple[int, int], size: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="must lie"):
        plan_windows(*span, size=size, overlap=overlap)


@given(RANGES, st.integers(1, 40))
def test_chunks_part_a_range_at_multiples_of_their_size(span: tuple[int, int], size: int) -> None:
    chunks = plan_chunks(*span, size=size)
    assert [frame for a, b in chunks for frame in range(a, b)] == list(range(*span))
    assert all(a % size == 0 for a, _ in chunks[1:])


@given(RANGES, RULES, RANGES)
def test_overlapping_finds_the_windows_that_share_a_frame(
    span: tuple[int, int], rule: tuple[int, int], asked: tuple[int, int]
) -> None:
    windows = plan_windows(*span, size=rule[0], overlap=rule[1])
    starts, stops = [a for a, _ in windows], [b for _, b in windows]
    expected = [i for i, (a, b) in enumerate(windows) if a < asked[1] and asked[0] < b]
    assert list(overlapping(starts, stops, *asked)) == expected
