"""Compile a recipe and its facts into a plan. Pure: equal inputs give an equal plan, nothing is looked up.

The stages are walked once, in order. Each is bound (defaults, models, windows), cut into chunks, and
every chunk gets a key that covers everything it is made from, down to the digest of the source.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from latentloom.errors import RecipeError, ResourceError
from latentloom.flows import estimate
from latentloom.flows.bind import bind_stages
from latentloom.flows.bound import BoundStage
from latentloom.flows.cells import Cells
from latentloom.flows.keys import OP_VERSIONS, chunk_key, stage_models
from latentloom.flows.output import (
    encode_settings,
    keeps_high_bit_depth,
    output_path,
    plan_digest,
    segment_frames,
)
from latentloom.flows.recommend import recommend
from latentloom.flows.shots import Shot, find_cut, plan_shots
from latentloom.flows.texts import unread_ends
from latentloom.flows.tiles import tiling_hint
from latentloom.flows.window_modes import (
    handed_over,
    is_read_as_it_is,
    meets_at_every_step,
    with_steps,
)
from latentloom.ops.windows import Range, overlapping, plan_chunks, plan_windows
from latentloom.schemas.base import digest, readable
from latentloom.schemas.facts import Facts
from latentloom.schemas.fusion import FuseStage
from latentloom.schemas.load import with_overrides
from latentloom.schemas.plan import Plan, PlannedChunk, PlannedStage, StageVariant
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stage import WindowRule


def compile_plan(recipe: Recipe, facts: Facts) -> Plan:
    """Compile a recipe.

    Args:
        recipe: A valid recipe with absolute paths.
        facts: What ``flows.resolve`` looked up for it.

    Returns:
        The plan. ``flows.need`` says which of its chunks are to be computed.

    Raises:
        RecipeError: If stages, models or ranges do not fit together; with every fault of the first kind met.
        ResourceError: If the plan is over its budget.
    """
    start, stop = find_cut(recipe, facts.source.info)
    shots = plan_shots(recipe, facts.source, start, stop)
    draft = _Draft(recipe, facts, start, stop, shots)
    draft.add_source()
    for bound in bind_stages(_variants(recipe, shots), facts, draft.frame_size()):
        draft.add_stage(bound)
    if recipe.output is not None:
        draft.add_segments()
    plan = draft.finish()
    _check_budget(plan)
    return plan


def _variants(recipe: Recipe, shots: Sequence[Shot]) -> dict[tuple[int, ...], Recipe]:
    """Return the recipe in force for each combination of redo ranges, the plain one first."""
    variants: dict[tuple[int, ...], Recipe] = {(): recipe}
    for shot in shots:
        if shot.redo not in variants:
            entries = [recipe.redo[i] for i in shot.redo]
            texts = [text for entry in entries for text in entry.overrides]
            changed = with_overrides(recipe, texts)
            seeds = [entry.seed for entry in entries if entry.seed is not None]
            update = {"seed": seeds[-1]} if seeds else {}
            variants[shot.redo] = changed.model_copy(update=update)
    return variants


@dataclass
class _Draft:
    """The plan while it grows, stage by stage."""

    recipe: Recipe
    facts: Facts
    start: int
    stop: int
    shots: list[Shot]
    stages: list[PlannedStage] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def frame_size(self) -> tuple[int, int]:
        """Return height and width at which the source is read."""
        size, info = self.recipe.source.size, self.facts.source.info
        if size == "source":
            return info.display_height, info.display_width
        return size.height, size.width

    def frames_dtype(self) -> str:
        """Return uint16 where the source has more than 8 bits and the output keeps them."""
        return "uint16" if keeps_high_bit_depth(self.recipe, self.facts) else "uint8"

    def add_source(self) -> None:
        """Add the source's frames: read where they are needed, never stored."""
        info, source = self.facts.source.info, self.recipe.source
        if info.interlaced and source.interlaced == "refuse":
            raise RecipeError(
                f"source.interlaced: {source.uri} is interlaced; set deinterlace or ignore to take it"
            )
        if info.interlaced and source.interlaced == "deinterlace":
            self.warnings.append("the source is interlaced; it is deinterlaced with bwdif")
        if info.bit_depth > 8 and self.frames_dtype() == "uint8":
            self.warnings.append(
                f"the source has {info.bit_depth} bits; the output is 8 bits (see output.codec, pix_fmt)"
            )
        height, width = self.frame_size()
        fields = {
            "op": "decode_video",
            "version": OP_VERSIONS["decode_video"],
            "source": self.facts.source.digest,
            "stream": info.stream,
            "size": [height, width],
            "fit": source.size.fit if source.size != "source" else None,
            "deinterlace": info.interlaced and source.interlaced == "deinterlace",
            "on_damage": source.on_damage,
            "dtype": self.frames_dtype(),
            "av": self.facts.machine.av,
        }
        self.stages.append(
            PlannedStage(
                name="decode_video",
                op="decode_video",
                unit="source",
                produces="frames",
                inputs=(),
                frame_shape=(height, width, 3),
                dtype=self.frames_dtype(),
                variants=(
                    StageVariant(
                        key=digest(fields), fields=fields, params=fields, seed=self.recipe.seed
                    ),
                ),
                chunks=(),
            )
        )

    def add_stage(self, bound: BoundStage) -> None:
        """Cut one stage into chunks and give them keys."""
        inputs = tuple(self._stage(name) for name in bound.inputs)
        cells = Cells(bound, self.shots, self.facts)
        for values in cells.timed:
            self._warn(unread_ends(bound.stage, values, self.facts))
        chunks: list[PlannedChunk] = []
        for shot, span in self._spans(bound, cells):
            chunks.append(self._chunk(cells, inputs, span, shot, chunks))
        dtype = bound.dtype or self.frames_dtype()
        frame_bytes = estimate.ITEM_BYTES[dtype] * prod(bound.frame_shape)
        stage = PlannedStage(
            name=bound.name,
            op=bound.stage.op,
            unit="windows" if bound.windows else "frames",
            produces=bound.stage.produces,
            inputs=bound.inputs,
            models=stage_models(bound.stage),
            frame_shape=bound.frame_shape,
            rate=bound.rate,
            dtype=dtype,
            transient=bound.transient and self._is_read(bound.name),
            kept=bound.stage.produces == "frames" and not bound.transient,
            variants=tuple(cells.variants),
            timed=tuple(cells.timed),
            chunks=tuple(chunks),
            chunk_bytes=tuple(
                chunk.num_frames * bound.rate * frame_bytes + estimate.CHUNK_OVERHEAD_BYTES
                for chunk in chunks
            ),
        )
        stage = with_steps(_with_checkpoints(stage, bound), bound)
        peak = estimate.peak_bytes(stage, self.recipe, self.facts, self.stages)
        self.stages.append(stage.model_copy(update={"peak_bytes": peak}))

    def _warn(self, texts: Sequence[str]) -> None:
        self.warnings += [text for text in dict.fromkeys(texts) if text not in self.warnings]

    def _is_read(self, name: str) -> bool:
        """Tell whether a stage has a reader: a later stage or the output."""
        names = [stage.name for stage in self.recipe.stages]
        readers = [
            stage.name
            for index, stage in enumerate(self.recipe.stages)
            if name in (stage.inputs or (names[index - 1] if index else "",))
        ]
        return bool(readers) or (self.recipe.output is not None and name == names[-1])

    def _spans(self, bound: BoundStage, cells: Cells) -> list[tuple[Shot, Range]]:
        if bound.windows is not None:
            size, overlap = bound.window_size, bound.window_overlap
            return [
                (shot, span)
                for shot in self.shots
                for span in plan_windows(shot.start, shot.stop, size=size, overlap=overlap)
            ]
        spans = []
        size = max(1, self.recipe.chunks.frames // bound.rate)
        for shot in self.shots if bound.ahead else cells.runs():
            cuts = plan_chunks(shot.start, shot.stop, size=size)
            spans += [(shot, span) for span in cuts]
        return spans

    def _chunk(
        self,
        cells: Cells,
        inputs: Sequence[PlannedStage],
        span: Range,
        shot: Shot,
        before: Sequence[PlannedChunk],
    ) -> PlannedChunk:
        variant, timed = cells.of_span(shot, span)
        ahead = min(cells.ahead, shot.stop - span[1])
        read_span = (span[0], span[1] + ahead)
        reads = tuple(_reads(stage, read_span, cells.windows) for stage in inputs)
        upstream = [
            _upstream_keys(stage, read, span) for stage, read in zip(inputs, reads, strict=True)
        ]
        upstream += handed_over(cells.windows, before, span)
        values = cells.timed[timed] | ({"ahead": ahead} if cells.ahead else {})
        key = chunk_key(cells.variants[variant].key, *span, values, upstream)
        return PlannedChunk(
            key=key,
            start=span[0],
            stop=span[1],
            variant=variant,
            timed=timed,
            reads=reads,
            ahead=ahead,
        )

    def add_segments(self) -> None:
        """Add the encoded segments of the output."""
        frames = self.stages[-1]
        if frames.produces != "frames":
            raise RecipeError(
                f"output: stage {frames.name!r} makes {frames.produces}, not frames;"
                " end with a decode stage, or remove output to keep them in the store"
            )
        if self.facts.container_problems:
            raise RecipeError([f"output: {text}" for text in self.facts.container_problems])
        height, width, _ = frames.frame_shape
        info = self.facts.source.info
        made, rate = info.faster(frames.rate), frames.rate
        settings = encode_settings(self.recipe, self.facts, made, (height, width))
        fields = {
            "op": "encode_video",
            "version": OP_VERSIONS["encode_video"],
            "settings": settings.model_dump(mode="json"),
            "av": self.facts.machine.av,
            "size": list(frames.frame_shape[:2]),
        }
        key = digest(fields)
        chunks = []
        for a, b in plan_chunks(self.start, self.stop, size=segment_frames(self.recipe, info)):
            read = _reads(frames, (a, b))
            timed = {"pts": digest(list(made.pts[a * rate : b * rate]))}
            upstream = [_upstream_keys(frames, read, (a, b))]
            name = chunk_key(key, a, b, timed, upstream)
            chunks.append(PlannedChunk(key=name, start=a, stop=b, reads=(read,)))
        stage = PlannedStage(
            name="encode_video",
            op="encode_video",
            unit="segments",
            produces="video",
            inputs=(frames.name,),
            frame_shape=(),
            rate=rate,
            dtype="uint8",
            variants=(StageVariant(key=key, fields=fields, params=fields, seed=self.recipe.seed),),
            chunks=tuple(chunks),
            chunk_bytes=tuple(
                estimate.segment_bytes(frames.frame_shape, chunk.num_frames * rate, self.recipe)
                for chunk in chunks
            ),
        )
        peak = estimate.peak_bytes(stage, self.recipe, self.facts, self.stages)
        self.stages.append(stage.model_copy(update={"peak_bytes": peak}))

    def finish(self) -> Plan:
        """Put the plan together."""
        recipe, facts = self.recipe, self.facts
        return Plan(
            digest=plan_digest(recipe, facts, self.stages),
            recipe=recipe,
            facts=facts,
            start=self.start,
            stop=self.stop,
            stages=tuple(self.stages),
            output=output_path(recipe, facts),
            peak_bytes=max(stage.peak_bytes for stage in self.stages),
            store_bytes=estimate.store_bytes(self.stages),
            warnings=tuple(self.warnings),
        )

    def _stage(self, name: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.name == name)


def _with_checkpoints(stage: PlannedStage, bound: BoundStage) -> PlannedStage:
    """Plan the checkpoints inside the windows of a stage that denoises with several models."""
    fields = bound.stage
    if not isinstance(fields, FuseStage) or meets_at_every_step(bound):
        return stage
    steps = fields.checkpoint_steps()
    if not steps:
        return stage
    planned = stage.model_copy(update={"checkpoints": steps})
    size = estimate.checkpoint_bytes(planned, num_states=len(fields.sources))
    return planned.model_copy(update={"checkpoint_bytes": size})


def _reads(stage: PlannedStage, span: Range, windows: WindowRule | None = None) -> tuple[int, ...]:
    """Choose the chunks of an input that a range reads: its own window, or all that it touches."""
    if stage.unit == "source":
        return ()
    starts, stops = stage.bounds
    if windows is not None and is_read_as_it_is(stage, windows):
        own = bisect_left(starts, span[0])
        if own < len(starts) and (starts[own], stops[own]) == span:
            return (own,)
    return tuple(overlapping(starts, stops, *span))


def _upstream_keys(stage: PlannedStage, read: Sequence[int], span: Range) -> list[str]:
    if stage.unit == "source":
        return [chunk_key(stage.key, *span, {}, [])]
    return [stage.chunks[index].key for index in read]


def _check_budget(plan: Plan) -> None:
    limits, machine = plan.recipe.limits, plan.facts.machine
    memory = limits.memory or machine.memory_bytes
    if plan.peak_bytes > memory:
        worst = max(plan.stages, key=lambda stage: stage.peak_bytes)
        raise ResourceError(
            f"stage {worst.name!r} needs {readable(plan.peak_bytes)} of memory, the limit is"
            f" {readable(memory)}; {_smaller_sizes(plan)},{tiling_hint(worst)} or raise limits.memory"
        )
    if limits.disk is not None and plan.store_bytes > limits.disk:
        raise ResourceError(
            f"the plan needs {readable(plan.store_bytes)} in the store, the limit is"
            f" {readable(limits.disk)}; shorten the cut, lower source.size, or raise limits.disk"
        )


def _smaller_sizes(plan: Plan) -> str:
    """Say what would fit."""
    advice = recommend(plan)
    if advice is None or not advice.overrides:
        return "lower source.size, windows.size, chunks.frames or numerics.micro_batch"
    return f"these fit: {', '.join(advice.overrides)}; or lower source.size"
