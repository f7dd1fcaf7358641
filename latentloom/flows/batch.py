"""The flow that edits an archive: a task run and an ``edit-video`` flow run for each video that needs it."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prefect import Task, flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, Failed
from prefect.tasks import exponential_backoff
from ulid import ULID

from latentloom.errors import (
    BatchError,
    InterruptedRunError,
    LatentloomError,
    ResourceError,
    StageError,
    StoreError,
)
from latentloom.flows.archive import (
    Scan,
    Video,
    output_version,
    scan,
    write_record,
)
from latentloom.flows.credentials import use_credentials
from latentloom.flows.crew import Crew, Job, Outcome, crew
from latentloom.flows.engine import cuda_devices
from latentloom.flows.interruption import listen_again
from latentloom.flows.notify import Ending, announced, ending_of_batch
from latentloom.flows.outage import outlast
from latentloom.flows.sharing import Share, alone, at_work, invite, mark_crashed
from latentloom.schemas.batch import VideoRecord
from latentloom.storage.leases import Lease
from latentloom.storage.store import Store
from latentloom.tasks.stop import stop_requested

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""Between looks at videos that other machines work on."""
_HELPED_BY_ANOTHER_TRY = (StageError, ResourceError, StoreError)
_listeners: list[Callable[[Tally], None]] = []
"""Who is told whenever a video has ended; the command line's progress."""


@dataclass
class Tally:
    """How far a batch is."""

    total: int
    done: int = 0
    """Videos that are in place, those of earlier scans too."""
    edited: int = 0
    """Of these, the ones of this scan."""
    failed: int = 0
    quarantined: int = 0
    left: int = 0
    """Videos that this scan has not ended."""
    seconds: float = 0.0
    last: VideoRecord | None = None
    """The video that ended last."""
    failures: list[VideoRecord] = field(default_factory=list)
    """Failed and quarantined ones."""

    def facts(self, batch: str, state: str) -> dict[str, Any]:
        """Return them as plain data."""
        return {
            "batch": batch,
            "state": state,
            "total": self.total,
            "done": self.done,
            "edited": self.edited,
            "failed": self.failed,
            "quarantined": self.quarantined,
            "waiting": self.left,
            "seconds": round(self.seconds, 3),
            "failures": [
                {"uri": r.uri, "state": r.state, "error": r.error, "exit_code": r.exit_code}
                for r in self.failures
            ],
        }


@contextmanager
def told(listener: Callable[[Tally], None]) -> Iterator[None]:
    """Have a function called whenever a video of a batch of this process has ended."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def _flow_run_name() -> str:
    return Path(str(flow_run.get_parameters()["batch"])).stem


@flow(name="edit-archive", flow_run_name=_flow_run_name, persist_result=False)
def edit_archive(
    batch: str,
    store: str = ".latentloom",
    wait: bool = False,
    roots: list[str] | None = None,
    defaults: dict[str, dict[str, Any]] | None = None,
    machines: int = 1,
    credentials: str | None = None,
    helps: str | None = None,
) -> Any:
    """Edit the videos of a batch file that are not done.

    Args:
        batch: Path of the batch file, on the machine that runs the flow.
        store: Path or URI of the store.
        wait: Whether to wait for another process that works on the batch; else a tick of a schedule that
            finds one ends as completed, having done nothing.
        roots: More folders that the batch may point into.
        defaults: Recipe fields for those that neither the recipe nor its overrides set.
        machines: Flow runs that share the videos, this one included; for deployments, whose workers take
            the others.
        credentials: Name of a Secret block with options for remote files; by default the environment's.
        helps: Id of the scan that this flow run was started to help with.

    Returns:
        Counts and failures as plain data; the flow run is failed if videos failed and fewer are done than
        ``min_success_ratio`` asks for.
    """
    with announced(ending_of_batch(batch, store)) as ending:
        use_credentials(credentials)
        opened = Store.open(store)
        paths = [Path(root) for root in roots or ()]
        scanned = scan(opened, Path(batch), roots=paths, defaults=defaults)
        name = scanned.batch.name
        if helps is not None:
            ending.silent = True
            return _help(scanned, Share(opened, name, helps, leads=False))
        with alone(opened, name, wait=wait) as leads:
            if not leads:
                ending.silent = True
                return Completed(message=f"batch {name} is being worked on already")
            if wait:
                scanned = scan(opened, Path(batch), roots=paths, defaults=defaults)
            tally = _lead(scanned, Share(opened, name, str(ULID()), leads=True), machines)
            _tell_of(ending, scanned, tally)
            return _concluded(scanned, tally)


def _lead(scanned: Scan, share: Share, machines: int) -> Tally:
    mark_crashed(share.store, share.batch)
    invite(min(machines, len(scanned.todo)) - 1, share.scan)
    with at_work(share.store, share.batch) as tags:
        return _Archive(scanned, share, tags).work()


def _help(scanned: Scan, share: Share) -> Any:
    with at_work(share.store, share.batch) as tags:
        tally = _Archive(scanned, share, tags).work()
    return Completed(message=f"helped; {tally.done} of {tally.total} done")


def _tell_of(ending: Ending, scanned: Scan, tally: Tally) -> None:
    """Fill in how a scan ended; nothing is told of one that found nothing to do."""
    ending.name, ending.subject = scanned.batch.name, f"batch {scanned.batch.name}"
    ending.silent = not tally.edited and not tally.failed
    ending.state = "failed" if tally.failed else "finished"
    ending.summary = _summary(tally)
    ending.failures = [f"{r.uri}: {r.error}" for r in tally.failures]


def _summary(tally: Tally) -> str:
    failed = tally.failed + tally.quarantined
    return f"{tally.done} of {tally.total} done, {tally.edited} in this run, {failed} failed"


def _concluded(scanned: Scan, tally: Tally) -> Any:
    batch = scanned.batch
    failed = tally.failed + tally.quarantined
    rows = [
        {"video": r.uri, "state": r.state, "exit code": r.exit_code, "error": r.error or ""}
        for r in tally.failures
    ]
    summary = _summary(tally)
    show = partial(
        create_table_artifact,
        table=rows or [{"video": "all", "state": "done", "exit code": 0, "error": ""}],
        key=f"batch-{batch.name}".lower().replace("_", "-"),
        description=summary,
    )
    outlast(show)
    facts = tally.facts(batch.name, "failed" if failed else "finished")
    enough = tally.done >= batch.min_success_ratio * tally.total
    kind = Failed if failed and (not enough or not tally.done) else Completed
    return kind(message=summary, data=facts)


class _Archive:
    """A batch at work."""

    def __init__(self, scanned: Scan, share: Share, tags: Sequence[str]) -> None:
        self.scan, self.batch = scanned, scanned.batch
        self.share, self.store, self.tags = share, share.store, tags
        self.tally = Tally(
            total=scanned.total,
            done=len(scanned.done),
            quarantined=len(scanned.quarantined),
            left=len(scanned.todo),
            failures=[video.record for video in scanned.quarantined],
        )
        self._waiting = deque(scanned.todo)
        self._look_again = 0.0

    def work(self) -> Tally:
        """Edit what is to do, so many at once, until all has ended or too much has failed."""
        begun = time.monotonic()
        for video in self.scan.quarantined:
            if video.record.state != "quarantined":
                self._write(video.record.model_copy(update={"state": "quarantined"}))
        if self.scan.todo:
            first = self.scan.todo[0]
            recipe = self.scan.template.recipe(first.source.uri, first.output, first.overrides)
            workers = min(self.batch.max_parallel, len(self.scan.todo))
            devices = cuda_devices() if recipe.numerics.device != "cpu" else ()
            with crew(workers, recipe.numerics.threads, devices=devices) as hands:
                self._edit_all(hands, workers)
        self.tally.seconds = time.monotonic() - begun
        if stop_requested():
            raise InterruptedRunError(
                f"stopped with {self.tally.left} videos left; the same command continues"
            )
        return self.tally

    def _edit_all(self, hands: Crew, workers: int) -> None:
        running: dict[Future[Outcome], tuple[Video, Lease]] = {}
        edit_one = self._task(hands, workers)
        with ThreadPoolExecutor(workers, thread_name_prefix="video") as threads:
            while running or (self._waiting and self._goes_on()):
                while len(running) < workers and (taken := self._take()) is not None:
                    video, _ = taken
                    self._write(video.record.model_copy(update=self._at_work()))
                    call = copy_context().run
                    future = threads.submit(call, edit_one, video.source.uri, video.output)
                    running[future] = taken
                self._await(running)

    def _take(self) -> tuple[Video, Lease] | None:
        """Return the next video that no other machine works on; count those that have ended there."""
        if time.monotonic() < self._look_again:
            return None
        for _ in range(len(self._waiting)):
            if not self._goes_on():
                return None
            video = self._waiting.popleft()
            claimed = self.share.claim(video)
            if isinstance(claimed, VideoRecord):
                self._count(claimed)
            elif claimed is not None:
                return video, claimed
            else:
                self._waiting.append(video)
        self._look_again = time.monotonic() + LOOK_SECONDS
        return None

    def _await(self, running: dict[Future[Outcome], tuple[Video, Lease]]) -> None:
        ended, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        listen_again()
        for future in ended:
            video, taken = running.pop(future)
            with taken:
                self._end(video, future)
        if not running and self._waiting:
            time.sleep(POLL_SECONDS)

    def _goes_on(self) -> bool:
        batch, failed = self.batch, self.tally.failed
        if stop_requested() or (failed and batch.on_failure == "stop"):
            return False
        return (batch.max_failures is None or failed < batch.max_failures) and self.share.goes_on()

    def _task(self, hands: Crew, workers: int) -> Task[[str, str], Outcome]:
        """Return the Prefect task that has one video edited by a worker."""
        videos = {(video.source.uri, video.output): video for video in self.scan.todo}

        @task(
            name="video",
            task_run_name="{source}",
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=self.batch.retries,
            retry_delay_seconds=exponential_backoff(backoff_factor=self.batch.retry_delay),
            retry_condition_fn=_another_try_can_help,
        )
        def edit_one(source: str, output: str) -> Outcome:
            job = Job(
                store=self.store.uri,
                template=self.scan.template,
                source=source,
                output=output,
                overrides=videos[source, output].overrides,
                workers=workers,
                tags=tuple(self.tags),
                parent_task_run=str(task_run.id),
            )
            return hands.edit(job)

        return edit_one

    def _end(self, video: Video, future: Future[Outcome]) -> None:
        try:
            outcome = future.result()
        except InterruptedRunError:
            self._write(video.record.model_copy(update={"state": "waiting"}))
            return
        except Exception as error:
            record = self._failed(video, error)
        else:
            record = video.record.model_copy(update=_done(video, outcome))
        record = record.model_copy(update={"scan": self.share.scan})
        self._write(record)
        self._count(record)

    def _failed(self, video: Video, error: Exception) -> VideoRecord:
        attempts = video.record.attempts + 1
        return video.record.model_copy(
            update={
                "state": "quarantined" if attempts >= self.batch.max_attempts else "failed",
                "attempts": attempts,
                "error": str(error) or type(error).__name__,
                "exit_code": error.exit_code if isinstance(error, LatentloomError) else 1,
            }
        )

    def _count(self, record: VideoRecord) -> None:
        """Count a video that has ended in this scan, on whichever machine."""
        if record.state == "done":
            self.tally.done += 1
            self.tally.edited += 1
        else:
            self.tally.failed += 1
            self.tally.failures.append(record)
        self.tally.left -= 1
        self.tally.last = record
        for listener in _listeners:
            listener(self.tally)

    def _at_work(self) -> Mapping[str, Any]:
        now = {"host": socket.gethostname(), "pid": os.getpid(), "scan": self.share.scan}
        return {"state": "running", "error": None, **now}

    def _write(self, record: VideoRecord) -> None:
        write_record(
            self.store, self.batch.name, record.model_copy(update={"updated": time.time()})
        )


def _another_try_can_help(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    unforeseen = not isinstance(error, LatentloomError)
    return not stop_requested() and (unforeseen or isinstance(error, _HELPED_BY_ANOTHER_TRY))


def _done(video: Video, outcome: Outcome) -> Mapping[str, Any]:
    return {
        "state": "done",
        "attempts": 0,
        "error": None,
        "exit_code": 0,
        "run": outcome.run,
        "flow_run": outcome.flow_run,
        "output_version": output_version(video.output),
        "computed": outcome.computed,
        "reused": outcome.reused,
        "seconds": round(outcome.seconds, 3),
        "warnings": outcome.warnings,
    }


def batch_error(facts: Mapping[str, Any]) -> BatchError | None:
    """Return the error that a batch with failures ends with."""
    failures: Sequence[Mapping[str, Any]] = facts["failures"]
    if not failures:
        return None
    lines = [f"{failure['uri']}: {failure['error']}" for failure in failures]
    return BatchError("\n".join([f"{len(failures)} of {facts['total']} videos failed:", *lines]))
