"""Recommend sizes for the memory at hand, by the estimate that the plan states. Nothing is applied.

The window comes first, since it is what a video model sees; then the frames of a model call; then a chunk
that such calls fill, shorter than the recipe's only where no other fits. Other sizes are other keys, and
other last bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from latentloom.flows import estimate
from latentloom.flows.rates import default_overlap
from latentloom.schemas.base import readable
from latentloom.schemas.facts import MachineFacts
from latentloom.schemas.plan import Plan, PlannedChunk, PlannedStage
from latentloom.schemas.recipe import Recipe

WINDOW_STEP = 4
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Sizes:
    """The sizes that memory depends on."""

    window: int | None
    """Frames of a window; nothing where no stage takes the recipe's."""
    micro_batch: int
    """Frames in a model call."""
    chunk: int
    """Frames of a chunk."""

    def overrides(self, now: Sizes) -> list[str]:
        """Return what differs from other sizes, as the command line takes it."""
        named = {
            "windows.size": (self.window, now.window),
            "numerics.micro_batch": (self.micro_batch, now.micro_batch),
            "chunks.frames": (self.chunk, now.chunk),
        }
        return [f"{name}={value}" for name, (value, old) in named.items() if value != old]


@dataclass(frozen=True)
class Recommendation:
    """The largest sizes that fit."""

    memory_bytes: int
    """Memory that the machine has free, or that the recipe allows."""
    gpu_bytes: int | None
    """Memory of the GPU, where one does the work."""
    now: Sizes
    sizes: Sizes
    peak_bytes: int
    """Predicted peak of the process tree with them."""
    seconds_per_frame: tuple[float, float] | None
    """Of the stages that run models, now and with them, where runs in this store have measured both."""

    @property
    def overrides(self) -> list[str]:
        """Return what differs from the plan, as the command line takes it."""
        return self.sizes.overrides(self.now)

    @property
    def line(self) -> str:
        """Say it in a line."""
        room = f"{readable(self.memory_bytes)} of memory"
        if self.gpu_bytes is not None:
            room += f" and {readable(self.gpu_bytes)} on the GPU"
        if not self.overrides:
            return f"recommended for {room}: the sizes as they are"
        line = (
            f"recommended for {room}: {' '.join(self.overrides)} (peak {readable(self.peak_bytes)});"
            " not applied: other sizes are other keys"
        )
        if self.seconds_per_frame is None:
            return f"{line}; speed not measured here"
        before, after = self.seconds_per_frame
        return f"{line}; measured here: {before:.3g} s a frame now, {after:.3g} then"

    def facts(self) -> dict[str, Any]:
        """Return it as plain data."""
        seconds = self.seconds_per_frame
        return {
            "memory_bytes": self.memory_bytes,
            "gpu_bytes": self.gpu_bytes,
            "window": self.sizes.window,
            "micro_batch": self.sizes.micro_batch,
            "chunk": self.sizes.chunk,
            "peak_bytes": self.peak_bytes,
            "overrides": self.overrides,
            "seconds_per_frame": None
            if seconds is None
            else {"now": seconds[0], "then": seconds[1]},
        }


def recommend(plan: Plan) -> Recommendation | None:
    """Find the largest window, micro-batch and chunk whose predicted peak fits in memory.

    Returns:
        Them, or nothing where no sizes fit.
    """
    search = _Search(plan)
    sizes = search.largest()
    if sizes is None:
        return None
    return Recommendation(
        memory_bytes=search.memory,
        gpu_bytes=plan.facts.machine.gpu_bytes,
        now=search.now,
        sizes=sizes,
        peak_bytes=search.peak(sizes),
        seconds_per_frame=search.speeds(sizes),
    )


def memory_found(machine: MachineFacts) -> int:
    """Return the memory that a run may take: what is free, within what the process may have."""
    return min(machine.memory_bytes, machine.free_memory_bytes or machine.memory_bytes)


class _Search:
    """The stages of a plan at other sizes."""

    def __init__(self, plan: Plan) -> None:
        self.plan, recipe = plan, plan.recipe
        self.memory = recipe.limits.memory or memory_found(plan.facts.machine)
        sized = [stage for stage in plan.stages if _takes_windows_of(recipe, stage)]
        window = max((_window_of(stage) for stage in sized), default=None)
        # A window holds whole source frames, however many an interpolation made of each.
        self.window_step = math.lcm(WINDOW_STEP, *(stage.rate for stage in sized))
        self.longest_window = None if window is None else self._most_frames(sized)
        self.now = Sizes(window, recipe.numerics.micro_batch, recipe.chunks.frames)
        self._cut: dict[tuple[str, Sizes], PlannedStage] = {}

    def largest(self) -> Sizes | None:
        """Return the largest sizes that fit; the micro-batch shrinks only where no window fits else."""
        for least in (self.now.micro_batch, 1):
            for window in self._windows():
                batches = [batch for batch in self._batches() if batch >= least]
                fitting = [s for s in (self._sizes(window, b) for b in batches) if self._fits(s)]
                if fitting:
                    return fitting[-1]
                shorter = (Sizes(window, least, chunk) for chunk in self._shorter_chunks(least))
                if (sizes := next(filter(self._fits, shorter), None)) is not None:
                    return sizes
        return None

    def peak(self, sizes: Sizes) -> int:
        """Predict the peak of the process tree: as planned, and by how much the formula differs."""
        return max(
            measured
            if (measured := self._measured(stage, sizes)) is not None
            else stage.peak_bytes + self._formula(stage, sizes) - self._formula_now[stage.name]
            for stage in self.plan.stages
        )

    def speeds(self, sizes: Sizes) -> tuple[float, float] | None:
        """Return the seconds a frame now and at other sizes, where all stages with models were measured."""
        seconds = self.plan.facts.measured_seconds
        totals = []
        for wanted in (self.now, sizes):
            resized = [self._resized(stage, wanted) for stage in self.plan.stages if stage.models]
            keys = [estimate.speed_key(s, self._recipe(wanted)) for s in resized]
            if not keys or not seconds.keys() >= set(keys):
                return None
            totals.append(sum(seconds[key] for key in keys))
        return totals[0], totals[1]

    def _fits(self, sizes: Sizes) -> bool:
        gpu = self.plan.facts.machine.gpu_bytes
        if gpu is not None and self._peak_of_formula(sizes) - estimate.BASELINE_BYTES > gpu:
            return False
        return self.peak(sizes) <= self.memory

    def _peak_of_formula(self, sizes: Sizes) -> int:
        return max(self._formula(stage, sizes) for stage in self.plan.stages)

    def _windows(self) -> Iterator[int | None]:
        """Yield window sizes, the largest first."""
        if self.now.window is None or self.longest_window is None:
            yield None
            return
        step = self.window_step
        sizes = {self.now.window, *range(step, self.longest_window + 1, step)}
        overlap = self.plan.recipe.windows.overlap or 0
        yield from sorted((size for size in sizes if size > overlap), reverse=True)

    def _batches(self) -> list[int]:
        """Return micro-batches, ascending; none so large that a call could only be filled by padding."""
        most = max(self._local_frames(), default=1)
        most = max(most, self.now.micro_batch, min(self.plan.num_frames, MICRO_BATCHES[-1]))
        return sorted({self.now.micro_batch, *(b for b in MICRO_BATCHES if b <= most)})

    def _local_frames(self) -> Iterator[int]:
        for stage in self.plan.stages:
            if stage.unit == "frames" and stage.models:
                yield from (chunk.num_frames * stage.rate for chunk in stage.chunks)

    def _sizes(self, window: int | None, micro_batch: int) -> Sizes:
        """Choose the chunk that calls fill: the plan's if they do, else the next multiple."""
        chunk = -(-self.now.chunk // micro_batch) * micro_batch
        return Sizes(window, micro_batch, chunk)

    def _shorter_chunks(self, micro_batch: int) -> Iterator[int]:
        """Yield chunks that calls fill, each half as long as the one before, down to one call."""
        chunk = self.now.chunk
        while chunk > micro_batch:
            chunk = max(1, chunk // 2 // micro_batch) * micro_batch
            yield chunk

    def _most_frames(self, stages: list[PlannedStage]) -> int:
        """Return the longest window that the stages' models take, within the video."""
        models = [self.plan.facts.models[name] for s in stages for name in s.models.values()]
        limits = [model.max_length for model in models if model.max_length is not None]
        own = max(_window_of(stage) for stage in stages)
        shown = max(self.plan.num_frames * stage.rate for stage in stages)
        return min(min(limits, default=own), max(own, shown))

    def _measured(self, stage: PlannedStage, sizes: Sizes) -> int | None:
        key = estimate.calibration_key(self._resized(stage, sizes), self._recipe(sizes))
        found = self.plan.facts.measured_bytes.get(key)
        return None if found is None else int(found * estimate.WORKING_FACTOR)

    def _formula(self, stage: PlannedStage, sizes: Sizes) -> int:
        facts = self.plan.facts.model_copy(update={"measured_bytes": {}})
        before = [
            self._resized(other, sizes)
            for other in self.plan.stages[: self.plan.stages.index(stage)]
        ]
        return estimate.peak_bytes(self._resized(stage, sizes), self._recipe(sizes), facts, before)

    @cached_property
    def _formula_now(self) -> dict[str, int]:
        return {stage.name: self._formula(stage, self.now) for stage in self.plan.stages}

    def _recipe(self, sizes: Sizes) -> Recipe:
        recipe = self.plan.recipe
        return recipe.model_copy(
            update={
                "numerics": recipe.numerics.model_copy(update={"micro_batch": sizes.micro_batch}),
                "chunks": recipe.chunks.model_copy(update={"frames": sizes.chunk}),
            }
        )

    def _resized(self, stage: PlannedStage, sizes: Sizes) -> PlannedStage:
        """Return a stage with a few chunks of the size that its longest would have."""
        if sizes == self.now or not stage.chunks:
            return stage
        if (stage.name, sizes) not in self._cut:
            self._cut[stage.name, sizes] = self._cut_to(stage, sizes)
        return self._cut[stage.name, sizes]

    def _cut_to(self, stage: PlannedStage, sizes: Sizes) -> PlannedStage:
        longest, frames = _longest(stage), self._frames(stage, sizes)
        variant = stage.variants[0]
        fields = dict(variant.fields)
        if "numerics" in fields:
            fields["numerics"] = fields["numerics"] | {"micro_batch": sizes.micro_batch}
        if sizes.window is not None and _takes_windows_of(self.plan.recipe, stage):
            overlap = self.plan.recipe.windows.overlap
            if overlap is None:
                overlap = default_overlap(sizes.window, stage.rate)
            fields["windows"] = fields["windows"] | {"size": sizes.window, "overlap": overlap}
        # As many windows as blend at a time; others cost no memory.
        together = self._together[stage.name]
        reads = tuple((0,) * num_read for num_read in self._num_read(stage, sizes))
        chunks = tuple(
            PlannedChunk(key="", start=k, stop=k + frames, reads=reads) for k in range(together)
        )
        step_bytes = [size * together // len(stage.chunks) for size in stage.step_bytes]
        return stage.model_copy(
            update={
                "chunks": chunks,
                "chunk_bytes": (max(stage.chunk_bytes) * frames // longest,) * together,
                "checkpoint_bytes": stage.checkpoint_bytes * frames // longest,
                "step_bytes": tuple(size * frames // longest for size in step_bytes),
                "variants": (variant.model_copy(update={"fields": fields}),),
            }
        )

    def _frames(self, stage: PlannedStage, sizes: Sizes) -> int:
        """Return the source frames that the longest chunk of a stage would have."""
        if stage.unit == "frames":
            return min(max(1, sizes.chunk // stage.rate), self.plan.num_frames)
        if sizes.window is not None and _takes_windows_of(self.plan.recipe, stage):
            return min(sizes.window // stage.rate, self.plan.num_frames)
        return _longest(stage)

    def _num_read(self, stage: PlannedStage, sizes: Sizes) -> Iterator[int]:
        """Yield for each input how many of its chunks one chunk would read.

        As many as it spans, and those beyond that it reads now, where it begins inside one.
        """
        for name, beyond in zip(stage.inputs, self._beyond[stage.name], strict=True):
            upstream = self.plan.by_name[name]
            spanned = _spanned(self._frames(stage, sizes), self._frames(upstream, sizes))
            yield max(1, spanned + beyond)

    @cached_property
    def _together(self) -> dict[str, int]:
        """How many windows of each stage share frames with one of them, itself among them, at most."""
        return {
            stage.name: max((len(stage.neighbours(i)) for i in range(len(stage.chunks))), default=1)
            for stage in self.plan.stages
        }

    @cached_property
    def _beyond(self) -> dict[str, list[int]]:
        """How many chunks of each input a chunk of each stage reads now, beyond those that it spans."""
        return {
            stage.name: [
                max(len(chunk.reads[position]) for chunk in stage.chunks)
                - _spanned(_longest(stage), _longest(self.plan.by_name[name]))
                for position, name in enumerate(stage.inputs)
            ]
            for stage in self.plan.stages
        }


def _takes_windows_of(recipe: Recipe, stage: PlannedStage) -> bool:
    """Tell whether a stage has the recipe's windows, and not a rule of its own."""
    if stage.unit != "windows" or not stage.models:
        return False
    rules = {one.name: getattr(one, "windows", None) for one in recipe.stages}
    return rules.get(stage.name) is None


def _window_of(stage: PlannedStage) -> int:
    """Return the size of the windows that a stage is cut into, where its shots are long enough."""
    return int(stage.variants[0].fields["windows"]["size"])


def _longest(stage: PlannedStage) -> int:
    return max((chunk.num_frames for chunk in stage.chunks), default=1)


def _spanned(frames: int, chunk: int) -> int:
    """Return how many chunks so many frames fill, the last one perhaps in part."""
    return -(-frames // chunk)
