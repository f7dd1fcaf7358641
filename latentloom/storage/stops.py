"""Steps at which runs were told to stop inside a stage: where whoever goes on looks for checkpoints.

A cached fact: it proves nothing, and where it is lost the chunks are denoised from the start.
"""

from __future__ import annotations

from collections.abc import Iterable

from latentloom.storage.store import Store

_KIND = "stops"


def read_stops(store: Store, stage_key: str) -> tuple[int, ...]:
    """Return the steps at which chunks of a stage may have been stopped, ascending."""
    cached = store.cached(_KIND, stage_key)
    if not isinstance(cached, list):
        return ()
    return tuple(sorted(step for step in cached if isinstance(step, int)))


def remember_stops(store: Store, stage_key: str, steps: Iterable[int]) -> None:
    """Add steps to those of a stage, before the first chunk is stopped there."""
    known = read_stops(store, stage_key)
    stops = sorted({*steps, *known})
    if stops != list(known):
        store.put_cached(_KIND, stage_key, list(stops))
