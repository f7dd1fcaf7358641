"""One chunk of one stage, opened: what it reads, which models it may use, and its values.

A stage's function takes an ``OpenChunk`` and returns the array to commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, JsonValue

from latentloom.errors import DamagedChunkError, MissingChunkError
from latentloom.media.decode import FrameReader
from latentloom.ops.blend import blend
from latentloom.schemas.plan import Plan, PlannedChunk, PlannedStage, StageVariant
from latentloom.storage.localize import localize, sources_folder
from latentloom.storage.store import Store
from latentloom.tasks.checkpoints import StepCheckpoints
from latentloom.tasks.loading import PlanModels
from latentloom.tasks.maps import read_map
from latentloom.tasks.tensors import Array, latents_to_array, latents_to_float

StageT = TypeVar("StageT", bound=BaseModel)
STEP_DTYPE: Final = "float32"
"""Of states between steps: denoising runs in float32, whatever the dtype of the stage."""

# Where frames that are no chunk of the store lie among what was read ahead.
_SOURCE: Final = ("decode_video", -1, None)
_MAP: Final = -2


@dataclass(frozen=True)
class OpenChunk:
    """One chunk with everything it is made from."""

    store: Store
    plan: Plan
    stage: PlannedStage
    chunk: PlannedChunk
    models: PlanModels = field(repr=False)
    step: int | None = None
    """Where windows meet at every step: the step that this one is taken to."""
    notes: dict[str, JsonValue] = field(default_factory=dict, repr=False)
    """What its stage wants to tell of the work, for the event: never a part of the result."""
    stops: tuple[int, ...] = ()
    """Steps after which runs were told to stop in its stage."""
    until_step: int | None = None
    """Steps after which this run is."""
    _ahead: dict[tuple[str, int, int | None], Array] = field(
        default_factory=dict, init=False, repr=False
    )
    """What was read ahead: chunks by stage, place and step, frames of the source, maps by their role."""

    @property
    def frames(self) -> range:
        """Return its absolute frames as the stage counts them: the source's, unless interpolated."""
        return range(*self.stage.span(self.chunk))

    @property
    def variant(self) -> StageVariant:
        """Return the whole-stage values in force."""
        return self.stage.variants[self.chunk.variant]

    @property
    def timed(self) -> dict[str, Any]:
        """Return the time-ranged values in force."""
        return self.stage.timed[self.chunk.timed]

    @property
    def dtype(self) -> str:
        """Return the dtype it is stored in."""
        return self.stage.dtype if self.is_final else STEP_DTYPE

    @property
    def is_final(self) -> bool:
        """Tell whether nothing is left to do for it in its stage."""
        return self.step is None or self.step == self.stage.steps[-1]

    @property
    def micro_batch(self) -> int:
        """Return the frames in one model call."""
        return self.plan.recipe.numerics.micro_batch

    def params(self, kind: type[StageT]) -> StageT:
        """Return the stage as a recipe would write it."""
        return kind.model_validate(self.variant.params)

    @cached_property
    def noise_stream(self) -> tuple[int, str]:
        """Return seed and name of the noise that the stage draws."""
        noise = self.variant.fields["noise"]
        return int(noise["seed"]), str(noise["stream"])

    @property
    def checkpoints(self) -> StepCheckpoints:
        """Return the checkpoints inside it."""
        return StepCheckpoints(self.store, self.stage, self.chunk, self.stops)

    def read_ahead(self) -> None:
        """Read what the stage is going to ask for; what is read a second time comes from memory.

        For a thread beside the one that computes: nothing here runs torch. The frames of a segment are
        too many to hold, and an editor without a model has nothing to read beside.
        """
        if self.stage.unit == "segments" or self.variant.params.get("kind") == "frames":
            return
        for role, fields in self.variant.fields.get("maps", {}).items():
            if "size" in fields:
                self._ahead[role, _MAP, None] = self.map_frames(role)
        if "decode_video" in self.stage.inputs:
            self._ahead[_SOURCE] = self.source_frames()
        for stage, index, step in self.reads():
            self._ahead[stage.name, index, step] = read_chunk(self.store, stage, index, step)

    def reads(self) -> Iterator[tuple[PlannedStage, int, int | None]]:
        """Yield the chunks of the store that it reads: their stage, place, and after which step."""
        if self.step is not None and self.step > self.stage.steps[0]:
            for index in self.stage.neighbours(self._index):
                yield self.stage, index, self.step - 1
        else:
            for name, read in zip(self.stage.inputs, self.chunk.reads, strict=True):
                yield from ((self.plan.by_name[name], index, None) for index in read)
        before = self.stage.before(self._index)
        if before is not None:
            yield self.stage, before, None

    def forget_inputs(self) -> None:
        """Let go of what was read ahead."""
        self._ahead.clear()

    def input_frames(self) -> NDArray[Any]:
        """Read the frames ``(F, H, W, 3)`` of its first input."""
        upstream = self.plan.by_name[self.stage.inputs[0]]
        if upstream.unit == "source":
            return self.source_frames()
        return np.concatenate([part for _, part in self._parts(0)])

    def iterate_frames(self) -> Iterator[Array]:
        """Read the frames of its first input piece by piece, for chunks too long to hold."""
        upstream = self.plan.by_name[self.stage.inputs[0]]
        if upstream.unit != "source":
            yield from (part for _, part in self._parts(0))
            return
        size = self.plan.recipe.chunks.frames
        for start in range(self.chunk.start, self.chunk.stop, size):
            yield self._read_source(start, min(start + size, self.chunk.stop))

    def input_latents(self, position: int = 0) -> torch.Tensor:
        """Read the latents ``(F, C, h, w)`` of an input, float32; overlapping windows blended."""
        upstream = self.plan.by_name[self.stage.inputs[position]]
        parts = list(self._parts(position))
        rate = upstream.rate
        start, stop = rate * self.chunk.start, rate * (self.chunk.stop + self.chunk.ahead)
        if upstream.unit == "windows" and len(parts) > 1:
            return self._blended(parts, upstream, start, stop)
        array = _cut(parts, start, stop)
        return torch.from_numpy(np.array(array, dtype=np.float32))

    def states_before(self) -> list[torch.Tensor] | None:
        """Read what all windows were before its step, blended: S states ``(F, C, h, w)``, float32.

        Returns:
            The states; nothing at the first step, which begins with the stage's inputs.
        """
        if self.step is None or self.step == self.stage.steps[0]:
            return None
        step = self.step - 1
        parts = [
            (self.stage.chunks[index].start, self._read(self.stage, index, step))
            for index in self.stage.neighbours(self._index)
        ]
        blended = self._blended(parts, self.stage, self.chunk.start, self.chunk.stop)
        return list(blended.unbind(1))

    def handed_over(self) -> torch.Tensor | None:
        """Read what the window before it made of the frames that they share: ``(R, C, h, w)``, float32."""
        before = self.stage.before(self._index)
        if before is None:
            return None
        first = self.stage.rate * (self.chunk.start - self.stage.chunks[before].start)
        array = latents_to_float(self._read(self.stage, before), self.stage.dtype)
        return torch.from_numpy(np.ascontiguousarray(array[first:]))

    @property
    def _index(self) -> int:
        """Return its place in its stage."""
        return self.stage.bounds[0].index(self.chunk.start)

    def steps_between(self, first: int, last: int) -> tuple[int, int]:
        """Return the steps ``[start, stop)`` to take: all of a stage's, or the one at hand."""
        return (first, last) if self.step is None else (self.step - 1, self.step)

    def result(self, states: Sequence[torch.Tensor]) -> Array:
        """Return states ``(F, C, h, w)`` as they are stored: all between steps, the first at the end."""
        if self.is_final:
            return latents_to_array(states[0], self.dtype)
        return latents_to_array(torch.stack(list(states), dim=1), self.dtype)

    def _blended(
        self, parts: list[tuple[int, Array]], stage: PlannedStage, start: int, stop: int
    ) -> torch.Tensor:
        rule = stage.variants[0].fields["windows"]
        return torch.from_numpy(
            blend(parts, start, stop, overlap=rule["overlap"], shape=rule["weights"])
        )

    def source_frames(self) -> NDArray[Any]:
        """Read the source's frames ``(F, H, W, 3)`` at the plan's size, whatever the inputs are."""
        if _SOURCE in self._ahead:
            return self._ahead[_SOURCE]
        return self._read_source(self.chunk.start, self.chunk.stop)

    def reference_frames(self, role: str, size: int) -> NDArray[Any]:
        """Read the middle square ``(F, size, size, 3)`` of the reference image of each frame."""
        fields = self.variant.fields["maps"][role] | {"size": [size, size], "fit": "cover"}
        return read_map(self.plan, fields, self.chunk.start, self.chunk.stop)

    def map_frames(self, role: str, *, high_bit_depth: bool = False) -> NDArray[Any]:
        """Read the side input ``(F, H, W, 3)`` that has a role in the stage, at the frames' size."""
        if (role, _MAP, None) in self._ahead:
            return self._ahead[role, _MAP, None]
        return read_map(
            self.plan,
            self.variant.fields["maps"][role],
            self.chunk.start,
            self.chunk.stop,
            high_bit_depth=high_bit_depth,
        )

    def _read_source(self, start: int, stop: int) -> NDArray[Any]:
        return open_source(self.plan).read(start, stop)

    def _read(self, stage: PlannedStage, index: int, step: int | None = None) -> Array:
        if (stage.name, index, step) in self._ahead:
            return self._ahead[stage.name, index, step]
        return read_chunk(self.store, stage, index, step)

    def _parts(self, position: int) -> Iterator[tuple[int, Array]]:
        """Yield what is read of an input, and the first frame of each part as the input counts them."""
        upstream = self.plan.by_name[self.stage.inputs[position]]
        latents = upstream.produces != "frames"
        wanted = (self.chunk.start, self.chunk.stop + self.chunk.ahead)
        for index in self.chunk.reads[position]:
            planned = upstream.chunks[index]
            start, stop = planned.start, planned.stop
            if upstream.unit != "windows":
                start, stop = max(start, wanted[0]), min(stop, wanted[1])
            rows = [upstream.rate * (frame - planned.start) for frame in (start, stop)]
            array = _rows(self._read(upstream, index), *rows)
            yield (
                upstream.rate * start,
                latents_to_float(array, upstream.dtype) if latents else array,
            )


def read_chunk(store: Store, stage: PlannedStage, index: int, step: int | None = None) -> Array:
    """Read a committed chunk; what is damaged or gone loses its record, so that it is computed again.

    Args:
        store: Where it lies.
        stage: Its stage.
        index: Its place there.
        step: After which step it is wanted, where windows meet at every step; after all by default.

    Raises:
        MissingChunkError: If it is not there, or was damaged.
    """
    key = stage.key_at(index, step)
    which = f"chunk {index}" if step is None else f"chunk {index} after step {step}"
    try:
        return store.read(key)
    except DamagedChunkError as error:
        store.delete(key)
        raise MissingChunkError(
            f"stage {stage.name!r}: {which} was damaged ({error}); it is computed again"
        ) from error
    except MissingChunkError as error:
        _forget_vanished(store, key)
        raise MissingChunkError(
            f"stage {stage.name!r} has no {which} in store {store.uri}."
            " Run the same command again; finished chunks are kept"
        ) from error


def _forget_vanished(store: Store, key: str) -> None:
    """Delete a record whose object has gone: it proves nothing any more."""
    record = store.find(key)
    if record is not None and not store.has_object(record):
        store.delete(key)


def open_source(plan: Plan) -> FrameReader:
    """Return the reader of a plan's source, shared by the chunks of this process."""
    stage = plan.by_name["decode_video"]
    key = (plan.facts.source.uri, stage.key)
    if key not in _readers:
        _readers.clear()
        path = localize(plan.facts.source.uri, sources_folder())
        _readers[key] = FrameReader(path, plan.facts.source.info, **dict(_decode_fields(plan)))
    return _readers[key]


_readers: dict[tuple[str, str], FrameReader] = {}


def _decode_fields(plan: Plan) -> tuple[tuple[str, Any], ...]:
    fields = plan.by_name["decode_video"].variants[0].fields
    own_size = fields["fit"] is None
    return (
        ("width", None if own_size else fields["size"][1]),
        ("height", None if own_size else fields["size"][0]),
        ("fit", fields["fit"] or "stretch"),
        ("deinterlace", fields["deinterlace"]),
        ("high_bit_depth", fields["dtype"] == "uint16"),
        ("on_damage", fields["on_damage"]),
    )


def _rows(array: Array, start: int, stop: int) -> Array:
    if (start, stop) == (0, len(array)):
        return array
    return np.ascontiguousarray(array[start:stop])


def _cut(parts: list[tuple[int, Array]], start: int, stop: int) -> Array:
    first = parts[0][0]
    array = parts[0][1] if len(parts) == 1 else np.concatenate([part for _, part in parts])
    return array[start - first : stop - first]
