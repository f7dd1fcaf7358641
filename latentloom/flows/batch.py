"""The flow that edits an archive: a task run and an ``edit-video`` flow run for each video that needs it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Task, flow, get_client, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.runtime import flow_run, task_run
from prefect.states import Completed, Crashed, Failed
from prefect.tasks import exponential_backoff

from latentloom.errors import (
    BatchError,
    HeldError,
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
from latentloom.flows.crew import Crew, Job, Outcome, crew
from latentloom.flows.engine import cuda_devices
from latentloom.flows.interruption import listen_again
from latentloom.flows.notify import Ending, announced, ending_of_batch
from latentloom.schemas.batch import VideoRecord
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
from latentloom.tasks.stop import stop_requested

POLL_SECONDS = 0.2
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
) -> Any:
    """Edit the videos of a batch file that are not done.

    Args:
        batch: Path of the batch file, on the machine that runs the flow.
        store: Path or URI of the store.
        wait: Whether to wait for another process that works on the batch; else a tick of a schedule that
            finds one ends as completed, having done nothing.
        roots: More folders that the batch may point into.
        defaults: Recipe fields for those that neither the recipe nor its overrides set.

    Returns:
        Counts and failures as plain data; the flow run is failed if videos failed and fewer are done than
        ``min_success_ratio`` asks for.
    """
    with announced(ending_of_batch(batch, store)) as ending:
        opened = Store.open(store)
        paths = [Path(root) for root in roots or ()]
        scanned = scan(opened, Path(batch), roots=paths, defaults=defaults)
        name = f"batch-{scanned.batch.name}"
        with _alone(opened, name, wait=wait) as alone:
            if not alone:
                ending.silent = True
                return Completed(message=f"batch {scanned.batch.name} is being worked on already")
            if wait:
                scanned = scan(opened, Path(batch), roots=paths, defaults=defaults)
            tally = _Archive(opened, scanned).work()
            _tell_of(ending, scanned, tally)
            return _concluded(scanned, tally)


@contextmanager
def _alone(store: Store, name: str, *, wait: bool) -> Iterator[bool]:
    try:
        with lease(store, name, wait=wait, stop=stop_requested):
            yield True
    except HeldError:
        yield False


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
    create_table_artifact(
        table=rows or [{"video": "all", "state": "done", "exit code": 0, "error": ""}],
        key=f"batch-{batch.name}".lower().replace("_", "-"),
        description=summary,
    )
    facts = tally.facts(batch.name, "failed" if failed else "finished")
    enough = tally.done >= batch.min_success_ratio * tally.total
    kind = Failed if failed and (not enough or not tally.done) else Completed
    return kind(message=summary, data=facts)


class _Archive:
    """A batch at work."""

    def __init__(self, store: Store, scanned: Scan) -> None:
        self.store, self.scan, self.batch = store, scanned, scanned.batch
        self.tally = Tally(
            total=scanned.total,
            done=len(scanned.done),
            quarantined=len(scanned.quarantined),
            left=len(scanned.todo),
            failures=[video.record for video in scanned.quarantined],
        )

    def work(self) -> Tally:
        """Edit what is to do, so many at once, until all has ended or too much has failed."""
        begun = time.monotonic()
        mark_crashed(self.batch.name)
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
        waiting = iter(self.scan.todo)
        running: dict[Future[Outcome], Video] = {}
        edit_one = self._task(hands, workers)
        with ThreadPoolExecutor(workers, thread_name_prefix="video") as threads:
            while True:
                while len(running) < workers and self._goes_on() and (video := next(waiting, None)):
                    self._write(video.record.model_copy(update=_at_work()))
                    call = copy_context().run
                    future = threads.submit(call, edit_one, video.source.uri, video.output)
                    running[future] = video
                if not running:
                    return
                ended, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                listen_again()
                for future in ended:
                    self._end(running.pop(future), future)

    def _goes_on(self) -> bool:
        batch, failed = self.batch, self.tally.failed
        if stop_requested() or (failed and batch.on_failure == "stop"):
            return False
        return batch.max_failures is None or failed < batch.max_failures

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
                tags=(_tag(self.batch.name),),
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
            self.tally.done += 1
            self.tally.edited += 1
        self.tally.left -= 1
        self.tally.last = record
        self._write(record)
        for listener in _listeners:
            listener(self.tally)

    def _failed(self, video: Video, error: Exception) -> VideoRecord:
        attempts = video.record.attempts + 1
        record = video.record.model_copy(
            update={
                "state": "quarantined" if attempts >= self.batch.max_attempts else "failed",
                "attempts": attempts,
                "error": str(error) or type(error).__name__,
                "exit_code": error.exit_code if isinstance(error, LatentloomError) else 1,
            }
        )
        self.tally.failed += 1
        self.tally.failures.append(record)
        return record

    def _write(self, record: VideoRecord) -> None:
        write_record(
            self.store, self.batch.name, record.model_copy(update={"updated": time.time()})
        )


def mark_crashed(batch: str) -> None:
    """Tell the server of flow runs whose processes died; call it while nobody else works on the batch."""
    still = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[_tag(batch)]),
        state=FlowRunFilterState(
            type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
        ),
    )
    with get_client(sync_client=True) as client:
        for found in client.read_flow_runs(flow_run_filter=still):
            client.set_flow_run_state(found.id, Crashed(message="its process died"), force=True)


def _tag(batch: str) -> str:
    return f"batch:{batch}"


def _another_try_can_help(_task: Any, _run: TaskRun, state: State[Any]) -> bool:
    error = state.result(raise_on_failure=False)
    unforeseen = not isinstance(error, LatentloomError)
    return not stop_requested() and (unforeseen or isinstance(error, _HELPED_BY_ANOTHER_TRY))


def _at_work() -> Mapping[str, Any]:
    return {"state": "running", "host": socket.gethostname(), "pid": os.getpid(), "error": None}


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
    }


def batch_error(facts: Mapping[str, Any]) -> BatchError | None:
    """Return the error that a batch with failures ends with."""
    failures: Sequence[Mapping[str, Any]] = facts["failures"]
    if not failures:
        return None
    lines = [f"{failure['uri']}: {failure['error']}" for failure in failures]
    return BatchError("\n".join([f"{len(failures)} of {facts['total']} videos failed:", *lines]))
