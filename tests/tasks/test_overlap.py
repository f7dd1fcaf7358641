"""One ahead, one behind. Barriers that only overlapping threads can pass, and no clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from latentloom.tasks.overlap import one_ahead, one_behind

PATIENCE_SECONDS = 60  # of a barrier that would never be passed


def test_items_come_in_order() -> None:
    assert list(one_ahead(iter(range(20)))) == list(range(20))


def test_next_item_is_taken_while_this_one_is_used() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def items() -> Iterator[int]:
        yield 0
        both.wait()
        yield 1

    taken = []
    for item in one_ahead(items()):
        if item == 0:
            both.wait()
        taken.append(item)
    assert taken == [0, 1]


def test_never_more_than_one_item_waits() -> None:
    most, used = 0, 0

    def items() -> Iterator[int]:
        nonlocal most
        for made in range(10):
            most = max(most, made - used)
            yield made

    for _ in one_ahead(items()):
        used += 1
    # The one in hand, and the one ahead.
    assert most <= 2


def test_what_taking_raises_comes_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise LookupError("gone")

    found = one_ahead(items())
    assert next(found) == 0
    with pytest.raises(LookupError, match="gone"):
        next(found)


def test_closing_early_leaves_no_thread() -> None:
    before = threading.active_count()
    with closing(one_ahead(iter(range(9)))) as items:
        next(items)
    assert threading.active_count() == before


def test_results_are_written_in_order_and_all() -> None:
    written: list[int] = []
    one_behind(range(20), written.append)
    assert written == list(range(20))


def test_a_result_is_written_while_the_next_is_made() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_SECONDS)

    def results() -> Iterator[int]:
        yield 0
        both.wait()
        yield 1

    one_behind(results(), lambda result: None if result else _ignore(both.wait()))


def test_what_writing_raises_stops_the_work_after_one_more() -> None:
    made = []

    def results() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number

    def write(result: int) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        one_behind(results(), write)
    assert made == [0, 1]


def test_what_making_raises_leaves_the_one_before_written() -> None:
    written: list[int] = []

    def results() -> Iterator[int]:
        yield 0
        raise LookupError("boom")

    with pytest.raises(LookupError, match="boom"):
        one_behind(results(), written.append)
    assert written == [0]


def _ignore(_: object) -> None:
    return None
