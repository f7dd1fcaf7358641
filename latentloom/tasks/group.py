"""Work through consecutive chunks of one stage: look, read, compute, commit, log.

The record decides. A chunk that has one is done; two workers on one chunk end with one record and no error.
Three threads share the work: one reads what the next chunk is made from, the caller's computes (models run
in no other, and for one task group of a process at a time), one commits the chunk before. A killed run loses
the chunks that are in flight, two at most; of windows that meet at every step one, since the next waits for
its record.
"""

from __future__ import annotations

import logging
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field

from pydantic import JsonValue

from latentloom.errors import (
    DamagedChunkError,
    InterruptedRunError,
    LatentloomError,
    ResourceError,
    StageError,
)
from latentloom.schemas.plan import Plan, PlannedChunk, PlannedStage
from latentloom.storage.leases import Lease, lease
from latentloom.storage.stops import read_stops
from latentloom.storage.store import Store
from latentloom.tasks.checkpoints import StepReached
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.decode import decode
from latentloom.tasks.edit import edit
from latentloom.tasks.encode import encode
from latentloom.tasks.encode_video import encode_video
from latentloom.tasks.flights import Flights
from latentloom.tasks.fuse import fuse
from latentloom.tasks.heap import give_back_memory
from latentloom.tasks.interpolate import interpolate
from latentloom.tasks.invert import invert
from latentloom.tasks.journal import Journal
from latentloom.tasks.loading import PlanModels, forget_changed_models, use_profile
from latentloom.tasks.mix import mix
from latentloom.tasks.overlap import one_ahead, one_behind
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
    "interpolate": interpolate,
    "upscale": upscale,
    "decode": decode,
    "encode_video": encode_video,
}
_models = threading.Lock()
"""Task groups in threads of one process share its models, whose layers carry hooks while tiles run."""
_log = logging.getLogger("latentloom")


def work_through(
    store: Store,
    plan: Plan,
    run_id: str,
    stage_name: str,
    indices: Sequence[int],
    step: int | None = None,
    *,
    until_step: int | None = None,
) -> Counter[str]:
    """Compute those of a stage's chunks that have no record yet, and the transient frames that they read.

    Args:
        store: Where chunks lie.
        plan: The plan.
        run_id: The run, for events.
        stage_name: Which stage.
        indices: Which of its chunks.
        step: Where windows meet at every step: the step that they are taken to.
        until_step: Elsewhere: steps of the stage after which they are to stop, as checkpoints.

    Returns:
        How many chunks of each stage this call computed; windows between steps are not counted.

    Raises:
        InterruptedRunError: If the run was asked to stop; what is finished is kept.
        ResourceError: If memory or disk is full.
        StageError: If a model or codec failed in a way nobody foresaw.
    """
    use_profile(plan)
    forget_changed_models(plan)
    work = _Work(store, plan, Journal(store, run_id))
    try:
        ready = work.open(plan.by_name[stage_name], indices, step, until_step=until_step)
        with closing(one_ahead(ready)) as opened:
            computed = (done for done in map(work.compute, opened) if done is not None)
            try:
                one_behind(computed, work.commit)
            except BaseException:
                # Who reads ahead must not wait for what will not come.
                work.flights.abandon()
                raise
    finally:
        work.flights.release()
        work.journal.flush()
    return work.computed


@dataclass(frozen=True)
class _Ready:
    """A chunk whose inputs are read."""

    index: int
    chunk: OpenChunk
    read_seconds: float


@dataclass(frozen=True)
class _Computed:
    """A chunk that waits for its record."""

    index: int
    chunk: OpenChunk
    array: Array
    seconds: float
    """How long it kept the thread that computes, waiting for its inputs included."""
    read_seconds: float
    compute_seconds: float


@dataclass
class _Work:
    """What one task does to a plan: chunks finished, transient ones deleted behind their readers."""

    store: Store
    plan: Plan
    journal: Journal
    computed: Counter[str] = field(default_factory=Counter)
    flights: Flights = field(default_factory=Flights)
    stops: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Steps at which runs were told to stop, by stage."""
    ended: float = field(default_factory=time.monotonic)
    """When the chunk before was computed."""
    before: str | None = None
    """Key of that chunk."""

    def open(
        self,
        stage: PlannedStage,
        indices: Sequence[int],
        step: int | None = None,
        *,
        until_step: int | None = None,
    ) -> Iterator[_Ready]:
        """Yield chunks that have no record, those that they read and that are made for them first."""
        for index in indices:
            opened = self._opened(stage, index, step, until_step)
            key = opened.chunk.key
            _check_stop(stage, index)
            self.flights.wait_for([key])
            if self._reuse(opened, index):
                continue
            self.flights.begin(key, self._lease(opened.chunk))
            if self._reuse(opened, index):
                self.flights.land(key)
                continue
            for upstream, read in self._inputs(stage, index):
                if upstream.transient:
                    yield from self.open(upstream, read)
            yield self._ready(opened, index)

    def compute(self, ready: _Ready) -> _Computed | None:
        """Compute a chunk; nothing if it stops on the way, as a checkpoint."""
        stage, chunk = ready.chunk.stage, ready.chunk.chunk
        try:
            _check_stop(stage, ready.index)
            if ready.chunk.step is not None and self.before is not None:
                # There are many of these, and a kill may cost one.
                self.flights.wait_for([self.before])
            self.journal.note("chunk_started", stage.name, chunk.key, ready.index)
            with _explained(stage, ready.index), _models if stage.models else nullcontext():
                begun = time.monotonic()
                array = STAGES[stage.op](ready.chunk)
        except StepReached:
            self._stand(ready)
            return None
        before, self.ended = self.ended, time.monotonic()
        self.before = chunk.key
        ready.chunk.forget_inputs()
        return _Computed(
            index=ready.index,
            chunk=ready.chunk,
            array=array,
            seconds=self.ended - before,
            read_seconds=ready.read_seconds,
            compute_seconds=self.ended - begun,
        )

    def commit(self, done: _Computed) -> None:
        """Give a chunk its record, and delete the transient frames of which it was the last reader."""
        opened, stage, chunk = done.chunk, done.chunk.stage, done.chunk.chunk
        begun = time.monotonic()
        try:
            start, stop = stage.span(chunk)
            self.store.commit(chunk.key, done.array, start=start, stop=stop, dtype=opened.dtype)
            opened.checkpoints.delete()
            self.computed[stage.name] += opened.is_final
            self._delete_behind(stage, done.index)
            self.flights.land(chunk.key)
        except BaseException:
            self.flights.abandon()
            raise
        _report(done, time.monotonic() - begun, self.journal)
        give_back_memory()

    def _ready(self, opened: OpenChunk, index: int) -> _Ready:
        self.flights.wait_for([stage.key_at(i, step) for stage, i, step in opened.reads()])
        begun = time.monotonic()
        with _explained(opened.stage, index):
            opened.read_ahead()
        return _Ready(index, opened, time.monotonic() - begun)

    def _inputs(
        self, stage: PlannedStage, index: int
    ) -> Iterator[tuple[PlannedStage, tuple[int, ...]]]:
        """Yield the stages that a chunk reads, and which of their chunks."""
        for name, read in zip(stage.inputs, stage.chunks[index].reads, strict=True):
            yield self.plan.by_name[name], read

    def _delete_behind(self, stage: PlannedStage, index: int) -> None:
        for upstream, read in self._inputs(stage, index):
            if not upstream.transient:
                continue
            for other in read:
                readers = set(self.plan.readers(upstream.name, other))
                if readers == self.store.present(readers):
                    self.store.delete(upstream.chunks[other].key)
                    self._delete_behind(upstream, other)

    def _reuse(self, opened: OpenChunk, index: int) -> bool:
        key, until = opened.chunk.key, opened.until_step
        standing = until is not None and opened.checkpoints.stands_at(until)
        if not standing and not _is_done(self.store, key):
            return False
        self.journal.note("chunk_reused", opened.stage.name, key, index)
        self._delete_behind(opened.stage, index)
        return True

    def _opened(
        self, stage: PlannedStage, index: int, step: int | None, until_step: int | None
    ) -> OpenChunk:
        if stage.name not in self.stops:
            self.stops[stage.name] = read_stops(self.store, stage.key)
        return OpenChunk(
            self.store,
            self.plan,
            stage,
            stage.chunk_at(index, step),
            PlanModels(self.plan),
            step,
            stops=self.stops[stage.name],
            until_step=until_step,
        )

    def _stand(self, ready: _Ready) -> None:
        """Note that a chunk stands where the run is to stop, as a checkpoint."""
        stage, chunk = ready.chunk.stage, ready.chunk.chunk
        before, self.ended = self.ended, time.monotonic()
        ready.chunk.forget_inputs()
        seconds = self.ended - before
        self.journal.note("chunk_stopped", stage.name, chunk.key, ready.index, seconds=seconds)
        self.flights.land(chunk.key)

    def _lease(self, chunk: PlannedChunk) -> AbstractContextManager[Lease]:
        return lease(
            self.store,
            f"chunk-{chunk.key[:40]}",
            stop=lambda: self.flights.abandoned or stop_requested(),
        )


def _check_stop(stage: PlannedStage, index: int) -> None:
    if stop_requested():
        raise InterruptedRunError(f"stopped before chunk {index} of stage {stage.name!r}")


def _is_done(store: Store, key: str) -> bool:
    """Tell whether a chunk has a record; a damaged one proves nothing, and commit replaces it."""
    try:
        return store.find(key) is not None
    except DamagedChunkError:
        return False


@contextmanager
def _explained(stage: PlannedStage, index: int) -> Iterator[None]:
    """Say of an error that nobody foresaw where it came up."""
    chunk = stage.chunks[index]
    where = f"stage {stage.name!r}, chunk {index} (frames {chunk.start}-{chunk.stop})"
    try:
        yield
    except (LatentloomError, StepReached):
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


def _report(done: _Computed, commit_seconds: float, journal: Journal) -> None:
    opened, peak = done.chunk, peak_rss_bytes()
    stage, chunk = opened.stage, opened.chunk
    detail: dict[str, JsonValue] = {
        "peak_bytes": peak,
        "read_seconds": done.read_seconds,
        "compute_seconds": done.compute_seconds,
        "commit_seconds": commit_seconds,
        **opened.notes,
    }
    if opened.step is not None:
        detail["step"] = opened.step
    journal.note(
        "chunk_computed", stage.name, chunk.key, done.index, seconds=done.seconds, detail=detail
    )
    _log.info(
        "%s%s chunk %d/%d frames %d-%d %.2f s peak %d MiB",
        stage.name,
        "" if opened.step is None else f" step {opened.step}",
        done.index + 1,
        len(stage.chunks),
        chunk.start,
        chunk.stop,
        done.seconds,
        peak >> 20,
    )


def peak_rss_bytes() -> int:
    """Return the most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
