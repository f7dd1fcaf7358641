"""Measure the memory of a run, so that the next plan need not guess.

What is kept is the peak of the whole process tree while a stage ran, by what it depends on: op, models,
shapes and profile. Only runs of one worker are kept; more workers hold more.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import psutil

from latentloom.flows.estimate import calibration_key, speed_key
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store

SAMPLE_SECONDS = 0.25
LOOK_FOR_CHILDREN_EVERY = 20
"""Samples between searches for new processes: a search reads all of /proc, a sample one file a process."""
CACHE = ("calibration", "peak-bytes")
SECONDS_CACHE = ("calibration", "seconds-per-frame")
LEAST_CHUNKS = 4
"""Chunks that a run must have computed of a stage for its speed to count: the first one loads models."""


class TreeWatch:
    """The most memory that a process and its children have held since the last question."""

    def __init__(self, pid: int | None = None) -> None:
        """Watch a process; this one by default."""
        self.pid = os.getpid() if pid is None else pid
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="memory watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def take_peak(self) -> int:
        """Return the peak in bytes, and begin anew."""
        peak = max(self._peak, tree_bytes(self.pid))
        self._peak = 0
        return peak

    def _follow(self) -> None:
        tree: list[psutil.Process] = []
        samples = 0
        while not self._done.wait(SAMPLE_SECONDS):
            if samples % LOOK_FOR_CHILDREN_EVERY == 0:
                tree = process_tree(self.pid)
            samples += 1
            self._peak = max(self._peak, resident_bytes(tree))


def tree_bytes(pid: int) -> int:
    """Return the resident bytes of a process and all its descendants."""
    return resident_bytes(process_tree(pid))


def process_tree(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; nothing if it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def resident_bytes(processes: Sequence[psutil.Process]) -> int:
    """Return the resident bytes of those processes that still run."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def read_measured(store: Store) -> dict[str, int]:
    """Return the peaks that earlier runs measured, by calibration key."""
    cached = store.cached(*CACHE)
    if not isinstance(cached, dict):
        return {}
    return {key: value for key, value in cached.items() if isinstance(value, int)}


def remember(store: Store, plan: Plan, peaks: Mapping[str, int]) -> None:
    """Keep the peaks of a run's stages, by name, where they say something new."""
    measured = read_measured(store)
    found = {calibration_key(plan.by_name[name], plan.recipe): peak for name, peak in peaks.items()}
    merged = measured | {key: max(peak, measured.get(key, 0)) for key, peak in found.items()}
    if merged != measured:
        store.put_cached(*CACHE, dict(merged))


def read_seconds(store: Store) -> dict[str, float]:
    """Return the seconds a source frame that earlier runs measured, by speed key."""
    cached = store.cached(*SECONDS_CACHE)
    if not isinstance(cached, dict):
        return {}
    return {key: float(value) for key, value in cached.items() if isinstance(value, int | float)}


def remember_seconds(
    store: Store, plan: Plan, seconds: Mapping[str, float], computed: Mapping[str, int]
) -> None:
    """Keep the seconds a source frame of those stages of which a run computed enough, the latest run's.

    Frames of overlaps count once, so that window rules can be compared.

    Args:
        store: Where.
        plan: The run's plan.
        seconds: Wall time of each stage, by name.
        computed: Chunks that the run computed, by name.
    """
    found = {}
    for name, count in computed.items():
        stage = plan.by_name[name]
        if count >= LEAST_CHUNKS and stage.models and name in seconds:
            frames = plan.num_frames / len(stage.chunks) * count
            found[speed_key(stage, plan.recipe)] = round(seconds[name] / frames, 6)
    if found:
        store.put_cached(*SECONDS_CACHE, dict(read_seconds(store) | found))
