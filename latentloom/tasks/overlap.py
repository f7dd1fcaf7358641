"""Read one item ahead, write one behind: a thread for each, while the caller's own thread works.

Never more than one: what waits in memory does not grow, and a killed run loses no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

ItemT = TypeVar("ItemT")


def one_ahead(items: Iterator[ItemT]) -> Generator[ItemT]:
    """Yield items in order, while a thread takes the next one from their iterator.

    Close it (``contextlib.closing``) where it may not be read to its end: that waits for the thread.

    Args:
        items: None of them None. Nobody else may take from it.

    Raises:
        Exception: What taking an item raised, in that item's turn.
    """
    with ThreadPoolExecutor(1, "read-ahead") as reader:

        def take() -> Future[ItemT | None]:
            # Prefect finds the run that a log line belongs to in the context.
            return reader.submit(copy_context().run, lambda: next(items, None))

        coming = take()
        while (item := coming.result()) is not None:
            coming = take()
            yield item


def one_behind(results: Iterable[ItemT], write: Callable[[ItemT], None]) -> None:
    """Write each result in a thread while the next one is made, in order, and return once all are written.

    Args:
        results: Made one by one, as they are asked for.
        write: Called with each.

    Raises:
        Exception: What writing raised, after at most one more result was made; else what making one
            raised, after the one before is written.
    """
    with ThreadPoolExecutor(1, "write-behind") as writer:
        writing: Future[None] | None = None
        try:
            for result in results:
                if writing is not None:
                    writing.result()
                writing = writer.submit(copy_context().run, write, result)
        finally:
            if writing is not None:
                writing.result()
