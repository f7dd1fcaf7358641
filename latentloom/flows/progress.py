"""Follow a run by its events: how far each stage is, and how long the rest will take.

The estimate counts only what is left to compute, by the seconds a frame has taken so far in this run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from latentloom.flows.need import Need
from latentloom.schemas.event import Event
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store

LOOK_SECONDS = 1.0
_PROGRESS = ("chunk_computed", "chunk_stopped")


def clock(seconds: float) -> str:
    """Write a duration as people read it.

    >>> clock(75), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class StageProgress:
    """How far a stage is."""

    name: str
    total: int
    """Chunks to compute in this run."""
    frames_left: int
    done: int = 0
    frames_done: int = 0
    seconds: float = 0.0
    """Seconds that workers spent on what is done."""

    def eta_seconds(self, workers: int) -> float | None:
        """Return the seconds that are left, or nothing before the first chunk."""
        if not self.frames_done:
            return None
        return self.seconds / self.frames_done * self.frames_left / workers

    @property
    def line(self) -> str:
        """Return how far it is, without the estimate."""
        return f"{self.name}: {self.done}/{self.total} chunks"


@dataclass
class Progress:
    """The stages of a run that have something to compute."""

    store: Store
    plan: Plan
    run_id: str
    need: Need
    workers: int
    show: Callable[[StageProgress, float | None], None]
    """Called with a stage that moved, and its estimate."""
    stages: dict[str, StageProgress] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)
    _looked: float = 0.0

    def __post_init__(self) -> None:
        for name, indices in self.need.items():
            if indices:
                chunks = self.plan.by_name[name].chunks
                steps = self.need.steps.get(name)
                made = [step.windows for step in steps] if steps else [indices]
                frames = sum(chunks[index].num_frames for step in made for index in step)
                self.stages[name] = StageProgress(name, self.need.num_computed(name), frames)
        self._seen.update(self.store.event_files(self.run_id))

    def tick(self) -> None:
        """Look for news, but not more often than once a second."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self.look()

    def look(self) -> None:
        """Read the events that came since the last look."""
        self._looked = time.monotonic()
        names = [n for n in self.store.event_files(self.run_id) if n not in self._seen]
        self._seen.update(names)
        moved = {
            event.stage
            for name in names
            for event in self.store.read_event_file(self.run_id, name)
            if self._count(event)
        }
        for stage in self.stages.values():
            if stage.name in moved:
                self.show(stage, stage.eta_seconds(self.workers))

    def _count(self, event: Event) -> bool:
        stage = self.stages.get(event.stage or "")
        if stage is None or event.index is None or event.kind not in _PROGRESS:
            return False
        frames = self.plan.by_name[stage.name].chunks[event.index].num_frames
        stage.done += 1
        stage.frames_done += frames
        stage.frames_left = max(0, stage.frames_left - frames)
        stage.seconds += event.seconds or 0.0
        return True
