"""Work through consecutive chunks of one stage, one by one: look, compute, commit, log.

The record decides. A chunk that has one is done; two workers on one chunk end with one record and no error.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from latentloom.errors import (
    DamagedChunkError,
    InterruptedRunError,
    LatentloomError,
    ResourceError,
    StageError,
)
from latentloom.schemas.event import Event, EventKind
from latentloom.schemas.plan import Plan, PlannedChunk, PlannedStage
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.decode import decode
from latentloom.tasks.edit import edit
from latentloom.tasks.encode import encode
from latentloom.tasks.encode_video import encode_video
from latentloom.tasks.fuse import fuse
from latentloom.tasks.invert import invert
from latentloom.tasks.loading import PlanModels, forget_changed_models, use_profile
from latentloom.tasks.mix import mix
from latentloom.tasks.smooth import smooth
from latentloom.tasks.stop import stop_requested
from latentloom.tasks.tensors import Array
from latentloom.tasks.upsample import upsample
from latentloom.tasks.upscale import upscale

STAGES: dict[str, Callable[[OpenChunk], Array]] = {
    "encode": encode,
    "invert": invert,
    "edit": edit,
    "fuse": fuse,
    "mix": mix,
    "smooth": smooth,
    "upsample": upsample,
    "upscale": upscale,
    "decode": decode,
    "encode_video": encode_video,
}
FLUSH_SECONDS = 2.0
_log = logging.getLogger("latentloom")


def work_through(
    store: Store,
    plan: Plan,
    run_id: str,
    stage_name: str,
    indices: Sequence[int],
    step: int | None = None,
) -> Counter[str]:
    """Compute those of a stage's chunks that have no record yet, and the transient frames that they read.

    Args:
        store: Where chunks lie.
        plan: The plan.
        run_id: The run, for events.
        stage_name: Which stage.
        indices: Which of its chunks.
        step: Where windows meet at every step: the step that they are taken to.

    Returns:
        How many chunks of each stage this call computed; windows between steps are not counted.

    Raises:
        InterruptedRunError: If the run was asked to stop; what is finished is kept.
        ResourceError: If memory or disk is full.
        StageError: If a model or codec failed in a way nobody foresaw.
    """
    use_profile(plan)
    forget_changed_models(plan)
    work = _Work(store, plan, _Journal(store, run_id))
    try:
        for index in indices:
            work.finish(plan.by_name[stage_name], index, step)
            work.delete_behind(plan.by_name[stage_name], index)
    finally:
        work.journal.flush()
    return work.computed


@dataclass
class _Work:
    """What one task does to a plan: chunks finished, transient ones deleted behind their readers."""

    store: Store
    plan: Plan
    journal: _Journal
    computed: Counter[str] = field(default_factory=Counter)

    def finish(self, stage: PlannedStage, index: int, step: int | None = None) -> None:
        """Make sure that a chunk has a record, or has one after a step."""
        if stop_requested():
            raise InterruptedRunError(f"stopped before chunk {index} of stage {stage.name!r}")
        chunk = stage.chunk_at(index, step)
        if self._reuse(stage, chunk, index):
            return
        with lease(self.store, f"chunk-{chunk.key[:40]}", stop=stop_requested):
            if self._reuse(stage, chunk, index):
                return
            self._make_inputs(stage, chunk)
            self.journal.note("chunk_started", stage.name, chunk.key, index)
            begun = time.monotonic()
            opened = OpenChunk(self.store, self.plan, stage, chunk, PlanModels(self.plan), step)
            array = _compute(opened, index)
            self.store.commit(
                chunk.key, array, start=chunk.start, stop=chunk.stop, dtype=opened.dtype
            )
            opened.checkpoints.delete()
            self.computed[stage.name] += opened.is_final
            _report(opened, index, time.monotonic() - begun, self.journal)

    def delete_behind(self, stage: PlannedStage, index: int) -> None:
        """Delete the transient frames of which a chunk was the last reader."""
        for position, name in enumerate(stage.inputs):
            upstream = self.plan.by_name[name]
            if not upstream.transient:
                continue
            for read in stage.chunks[index].reads[position]:
                readers = set(self.plan.readers(name, read))
                if readers == self.store.present(readers):
                    self.store.delete(upstream.chunks[read].key)
                    self.delete_behind(upstream, read)

    def _make_inputs(self, stage: PlannedStage, chunk: PlannedChunk) -> None:
        for position, name in enumerate(stage.inputs):
            upstream = self.plan.by_name[name]
            if upstream.transient:
                for read in chunk.reads[position]:
                    self.finish(upstream, read)

    def _reuse(self, stage: PlannedStage, chunk: PlannedChunk, index: int) -> bool:
        if not _is_done(self.store, chunk.key):
            return False
        self.journal.note("chunk_reused", stage.name, chunk.key, index)
        return True


def _is_done(store: Store, key: str) -> bool:
    """Tell whether a chunk has a record; a damaged one proves nothing, and commit replaces it."""
    try:
        return store.find(key) is not None
    except DamagedChunkError:
        return False


def _compute(chunk: OpenChunk, index: int) -> Array:
    where = (
        f"stage {chunk.stage.name!r}, chunk {index} (frames {chunk.chunk.start}-{chunk.chunk.stop})"
    )
    try:
        return STAGES[chunk.stage.op](chunk)
    except LatentloomError:
        raise
    except MemoryError as error:
        raise ResourceError(
            f"{where}: out of memory; lower source.size, windows.size or numerics.micro_batch."
            " Finished chunks are kept"
        ) from error
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            raise ResourceError(
                f"{where}: out of memory on the device; lower source.size, windows.size or"
                " numerics.micro_batch. Finished chunks are kept"
            ) from error
        raise StageError(
            f"{where}: {type(error).__name__}: {error}. Finished chunks are kept"
        ) from error


def _report(opened: OpenChunk, index: int, seconds: float, journal: _Journal) -> None:
    stage, chunk, peak = opened.stage, opened.chunk, peak_rss_bytes()
    detail = {"peak_bytes": peak, **opened.notes}
    if opened.step is not None:
        detail["step"] = opened.step
    journal.note("chunk_computed", stage.name, chunk.key, index, seconds=seconds, detail=detail)
    _log.info(
        "%s%s chunk %d/%d frames %d-%d %.2f s peak %d MiB",
        stage.name,
        "" if opened.step is None else f" step {opened.step}",
        index + 1,
        len(stage.chunks),
        chunk.start,
        chunk.stop,
        seconds,
        peak >> 20,
    )


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class _Journal:
    """Events on their way to the store, flushed now and then: history, not proof."""

    store: Store
    run_id: str
    pending: list[Event] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)

    def note(
        self,
        kind: EventKind,
        stage: str,
        key: str,
        index: int,
        *,
        seconds: float | None = None,
        detail: dict[str, JsonValue] | None = None,
    ) -> None:
        """Keep one event, and write all that are kept every other second."""
        self.pending.append(
            Event(
                time=time.time(),
                kind=kind,
                run=self.run_id,
                stage=stage,
                key=key,
                index=index,
                seconds=seconds,
                worker=worker_name(),
                detail=detail or {},
            )
        )
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        if self.pending:
            self.store.append_events(self.run_id, worker_name(), self.pending)
        self.pending, self.flushed = [], time.monotonic()


def worker_name() -> str:
    """Name this process in events."""
    return f"{socket.gethostname()}-{os.getpid()}"
