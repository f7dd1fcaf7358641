"""Checkpoints inside a chunk: a killed denoising goes on where the newest one stands, to the same bytes.

A step checkpoint is an object and an exclusive record like any other chunk's, in float32 whatever the dtype.
The next one replaces it, the finished chunk replaces them all, and always the record goes first. One at which
a run was told to stop has a key of another form, and holds an estimate of the clean latents beside the
states.
F frames, S states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from pydantic import JsonValue

from latentloom.errors import DamagedChunkError, MissingChunkError
from latentloom.schemas.plan import PlannedChunk, PlannedStage
from latentloom.schemas.record import Record
from latentloom.storage.store import Store
from latentloom.tasks.tensors import Array


class StepReached(Exception):
    """The denoising of a chunk stands where its run was told to stop."""


@dataclass(frozen=True)
class StepState:
    """Where the denoising of a chunk stands."""

    step: int
    """Steps done."""
    states: list[torch.Tensor]
    """What goes into the next step: S tensors ``(F, C, h, w)``, float32."""
    attributes: Mapping[str, JsonValue] = field(default_factory=dict)
    """What else the next step needs or a person may want to know, the same for every worker."""
    estimate: torch.Tensor | None = None
    """The clean latents ``(F, C, h, w)`` that the last step implied, where a run was told to stop."""


@dataclass(frozen=True)
class StepCheckpoints:
    """The checkpoints inside one chunk: after steps that the plan names, and where runs were told to stop."""

    store: Store
    stage: PlannedStage
    chunk: PlannedChunk
    stops: tuple[int, ...] = ()
    """Steps after which runs were told to stop."""

    def newest(self) -> StepState | None:
        """Read the newest checkpoint that is whole; a damaged or vanished one loses its record."""
        for step, key in self._present(self._keys()):
            found = self._read(step, key)
            if found is not None:
                return found
        return None

    def newest_stop(self) -> StepState | None:
        """Read the newest one at which a run was told to stop, with its estimate."""
        for step, key in self._present(self._stop_keys()):
            found = self._read(step, key)
            if found is not None:
                return found
        return None

    def stands_at(self, step: int) -> bool:
        """Tell whether a run was told to stop here, after so many steps or more."""
        return any(found >= step for found, _ in self._present(self._stop_keys()))

    def due(self, step: int) -> bool:
        """Tell whether the plan has a checkpoint after so many steps."""
        return step in self.stage.checkpoints

    def save(self, state: StepState) -> None:
        """Commit a checkpoint, then delete the older ones."""
        stopped, tensors = state.estimate is not None, list(state.states)
        if state.estimate is not None:
            tensors.append(state.estimate)
        array = np.stack([part.detach().float().cpu().numpy() for part in tensors], axis=1)
        key = self.chunk.stop_key if stopped else self.chunk.checkpoint_key
        start, stop = self.stage.span(self.chunk)
        self.store.commit(
            key(state.step),
            array,
            start=start,
            stop=stop,
            attributes={"step": state.step, **state.attributes},
        )
        self.delete(before=state.step)

    def delete(self, *, before: int | None = None) -> None:
        """Delete all checkpoints, or those of fewer steps."""
        for step, key in self._present(self._keys()):
            if before is None or step < before:
                self.store.delete(key)

    def _stop_keys(self) -> dict[str, int]:
        return {self.chunk.stop_key(step): step for step in self.stops}

    def _keys(self) -> dict[str, int]:
        planned = {self.chunk.checkpoint_key(step): step for step in self.stage.checkpoints}
        return planned | self._stop_keys()

    def _present(self, keys: Mapping[str, int]) -> list[tuple[int, str]]:
        """Return steps and keys of those that have a record, the newest first."""
        present = self.store.present(keys) if keys else set[str]()
        return sorted(((keys[key], key) for key in present), reverse=True)

    def _read(self, step: int, key: str) -> StepState | None:
        try:
            record = self.store.find(key)
            if record is None:
                return None
            opened = _opened(step, record, self.store.read(record))
        except (DamagedChunkError, MissingChunkError):
            self.store.delete(key)
            return None
        if key == self.chunk.checkpoint_key(step):
            return opened
        return replace(opened, states=opened.states[:-1], estimate=opened.states[-1])


def _opened(step: int, record: Record, array: Array) -> StepState:
    states = [torch.from_numpy(np.ascontiguousarray(state)) for state in np.moveaxis(array, 1, 0)]
    attributes = {name: value for name, value in record.attributes.items() if name != "step"}
    return StepState(step, states, attributes)
