"""Checkpoints inside a chunk: a killed denoising goes on where the newest one stands, to the same bytes.

A step checkpoint is an object and an exclusive record like any other chunk's, in float32 whatever the dtype.
The next one replaces it, the finished chunk replaces them all, and always the record goes first.
F frames, S states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import JsonValue

from latentloom.errors import DamagedChunkError, MissingChunkError
from latentloom.schemas.plan import PlannedChunk, PlannedStage
from latentloom.schemas.record import Record
from latentloom.storage.store import Store
from latentloom.tasks.tensors import Array


@dataclass(frozen=True)
class StepState:
    """Where the denoising of a chunk stands."""

    step: int
    """Steps done."""
    states: list[torch.Tensor]
    """What goes into the next step: S tensors ``(F, C, h, w)``, float32."""
    attributes: Mapping[str, JsonValue] = field(default_factory=dict)
    """What else the next step needs or a person may want to know, the same for every worker."""


@dataclass(frozen=True)
class StepCheckpoints:
    """The checkpoints inside one chunk, after those steps that the plan names."""

    store: Store
    stage: PlannedStage
    chunk: PlannedChunk

    def newest(self) -> StepState | None:
        """Read the newest checkpoint that is whole; a damaged or vanished one loses its record."""
        for step, key in self._present():
            try:
                record = self.store.find(key)
                if record is not None:
                    return _opened(step, record, self.store.read(record))
            except (DamagedChunkError, MissingChunkError):
                self.store.delete(key)
        return None

    def due(self, step: int) -> bool:
        """Tell whether the plan has a checkpoint after so many steps."""
        return step in self.stage.checkpoints

    def save(self, state: StepState) -> None:
        """Commit a checkpoint, then delete the older ones."""
        array = np.stack([part.detach().float().cpu().numpy() for part in state.states], axis=1)
        self.store.commit(
            self.chunk.checkpoint_key(state.step),
            array,
            start=self.chunk.start,
            stop=self.chunk.stop,
            attributes={"step": state.step, **state.attributes},
        )
        self.delete(before=state.step)

    def delete(self, *, before: int | None = None) -> None:
        """Delete all checkpoints, or those of fewer steps."""
        for step, key in self._present():
            if before is None or step < before:
                self.store.delete(key)

    def _present(self) -> list[tuple[int, str]]:
        """Return steps and keys of those that have a record, the newest first."""
        keys = {self.chunk.checkpoint_key(step): step for step in self.stage.checkpoints}
        present = self.store.present(keys) if keys else set[str]()
        return sorted(((keys[key], key) for key in present), reverse=True)


def _opened(step: int, record: Record, array: Array) -> StepState:
    states = [torch.from_numpy(np.ascontiguousarray(state)) for state in np.moveaxis(array, 1, 0)]
    attributes = {name: value for name, value in record.attributes.items() if name != "step"}
    return StepState(step, states, attributes)
