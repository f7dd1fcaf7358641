"""The plan: a recipe's frozen compilation. Tasks need nothing else but a store.

A chunk is addressed by its stage's name and its index there, and proved by its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from latentloom.schemas.base import Schema, digest
from latentloom.schemas.facts import Facts
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stage import Kind
from latentloom.schemas.step_keys import StepKeys, near

Unit = Literal["source", "frames", "windows", "segments"]
PLAN_FORMAT: Literal[1] = 1
CHECKPOINT_VERSION = 1
"""Raised when what a step checkpoint holds changes; older ones are then not found."""


class StageVariant(Schema):
    """One set of whole-stage values; a stage has more than one where a redo range overrides some."""

    key: str
    """Stage key."""
    fields: dict[str, Any]
    """The readable form of the key."""
    params: dict[str, Any]
    """The stage as a recipe would write it, with defaults resolved."""
    seed: int
    """Seed in force."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class PlannedChunk:
    """Consecutive frames of one stage that one record proves.

    A plan of hours holds a hundred thousand of them: with slots each takes a quarter of what a model does.
    """

    key: str
    """Chunk key."""
    start: Annotated[int, Field(ge=0)]
    """First absolute source frame."""
    stop: int
    """One past the last."""
    variant: int = 0
    """Index into the stage's variants."""
    timed: int = 0
    """Index into the stage's timed values."""
    reads: tuple[tuple[int, ...], ...] = ()
    """For each input of the stage, the indices of the chunks that are read."""
    ahead: int = 0
    """Source frames after the last one that are read as well."""

    @property
    def num_frames(self) -> int:
        """Return how many source frames the chunk stands for."""
        return self.stop - self.start

    def checkpoint_key(self, step: int) -> str:
        """Return the key of the checkpoint inside this chunk after so many steps."""
        return digest({"checkpoint": CHECKPOINT_VERSION, "chunk": self.key, "step": step})

    def stop_key(self, step: int) -> str:
        """Return the key of the checkpoint at which a run was told to stop; it holds an estimate, too."""
        return digest({"stop": CHECKPOINT_VERSION, "chunk": self.key, "step": step})


class PlannedStage(Schema):
    """One stage: how it is cut, and what each piece is."""

    name: str
    op: str
    unit: Unit
    produces: Kind | Literal["video"]
    inputs: tuple[str, ...]
    """Names of the stages it reads."""
    models: dict[str, str] = Field(default_factory=dict)
    """Role of each model in this stage, and its name among the plan's facts."""
    frame_shape: tuple[int, ...]
    """Shape of one frame: (C, h, w) of latents, (H, W, 3) of frames, () of segments."""
    rate: int = 1
    """Frames for each source frame: 4 from an interpolation on."""
    dtype: str
    transient: bool = False
    """Deleted behind its last reader."""
    kept: bool = False
    """Frames that the recipe wants to have, whether the video is there or not."""
    variants: tuple[StageVariant, ...]
    timed: tuple[dict[str, Any], ...] = ({},)
    """The distinct time-ranged values, such as prompts."""
    chunks: tuple[PlannedChunk, ...]
    chunk_bytes: tuple[int, ...] = ()
    """Predicted bytes of each chunk in the store."""
    checkpoints: tuple[int, ...] = ()
    """After how many steps of a chunk its states are saved; each is deleted behind the next."""
    checkpoint_bytes: int = 0
    """Predicted bytes of the largest of them."""
    steps: tuple[int, ...] = ()
    """Where windows meet at every step: those steps, counted from 1. What all windows are after the last of
    them are the chunks; what they are after the others is deleted two steps later."""
    bases: tuple[str, ...] = ()
    """For each such window the key of what it is made from, before any step."""
    step_bytes: tuple[int, ...] = ()
    """Predicted bytes of all windows after each step but the last."""
    in_order: bool = False
    """Whether a window reads the one before it in its shot, so that they are made in order."""
    peak_bytes: int = 0
    """Predicted peak memory of the process tree while it runs."""

    @cached_property
    def bounds(self) -> tuple[list[int], list[int]]:
        """Return first frames and ends of all chunks, both ascending."""
        return [chunk.start for chunk in self.chunks], [chunk.stop for chunk in self.chunks]

    def neighbours(self, index: int) -> range:
        """Return the windows that share a frame with a window, itself among them."""
        return near(*self.bounds, index)

    def before(self, index: int) -> int | None:
        """Return the window that a window reads of its own stage; nothing for the first of a shot."""
        first = self.neighbours(index).start
        return index - 1 if self.in_order and first < index else None

    def key_at(self, index: int, step: int | None = None) -> str:
        """Return the key of a chunk as it is after a step; after all of them by default."""
        if step is None or step == self.steps[-1]:
            return self.chunks[index].key
        return self._step_keys.key(self.steps.index(step), index)

    def chunk_at(self, index: int, step: int | None = None) -> PlannedChunk:
        """Return a chunk as it is after a step; after all of them by default."""
        return replace(self.chunks[index], key=self.key_at(index, step))

    def keys_at(self, step: int) -> list[str]:
        """Return the keys of all windows after a step."""
        return [self.key_at(index, step) for index in range(len(self.chunks))]

    @cached_property
    def _step_keys(self) -> StepKeys:
        return StepKeys(self.bases, *self.bounds)

    def span(self, chunk: PlannedChunk) -> tuple[int, int]:
        """Return a chunk's frames ``[start, stop)`` as the stage counts them, ``rate`` to a source frame."""
        return chunk.start * self.rate, chunk.stop * self.rate

    @property
    def longest(self) -> int:
        """Return the frames of its longest chunk."""
        return self.rate * max((chunk.num_frames for chunk in self.chunks), default=0)

    @property
    def key(self) -> str:
        """Return the stage key outside redo ranges."""
        return self.variants[0].key

    @property
    def stored(self) -> bool:
        """Tell whether its chunks lie in the store; source frames do not."""
        return self.unit != "source"


class Plan(Schema):
    """Everything a run does, decided before it starts."""

    format: Literal[1] = PLAN_FORMAT
    digest: str
    """Identity of the result: neither the output's path nor the number of workers is in it."""
    recipe: Recipe
    facts: Facts
    start: int
    """First absolute source frame of the cut."""
    stop: int
    """One past the last."""
    stages: tuple[PlannedStage, ...]
    output: str | None
    """Path of the video, templates filled in."""
    peak_bytes: int
    store_bytes: int
    warnings: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, PlannedStage]:
        """Return the stages by name."""
        return {stage.name: stage for stage in self.stages}

    @property
    def num_frames(self) -> int:
        """Return the length of the cut in source frames."""
        return self.stop - self.start

    @property
    def rate(self) -> int:
        """Return how many frames the result has for each source frame."""
        return self.stages[-1].rate

    def readers(self, name: str, index: int) -> list[str]:
        """Return the keys of the chunks that read a chunk."""
        return self._readers[name].get(index, [])

    @cached_property
    def _readers(self) -> dict[str, dict[int, list[str]]]:
        readers: dict[str, dict[int, list[str]]] = {stage.name: {} for stage in self.stages}
        for stage in self.stages:
            for position, name in enumerate(stage.inputs):
                for chunk in stage.chunks:
                    for index in chunk.reads[position]:
                        readers[name].setdefault(index, []).append(chunk.key)
        return readers

    def keys(self) -> Iterator[str]:
        """Yield the key of every chunk that has a record."""
        for stage in self.stages:
            if stage.stored:
                yield from (chunk.key for chunk in stage.chunks)

    def checkpoint_keys(self) -> Iterator[tuple[str, str]]:
        """Yield the key of every checkpoint that a chunk may have inside it, and the chunk's own."""
        for stage in self.stages:
            for chunk in stage.chunks:
                yield from ((chunk.checkpoint_key(step), chunk.key) for step in stage.checkpoints)

    def lasting_keys(self) -> Iterator[str]:
        """Yield the key of every chunk that outlives its stage."""
        for stage in self.stages:
            if stage.stored and not stage.transient:
                yield from (chunk.key for chunk in stage.chunks)
