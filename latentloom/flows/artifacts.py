"""What a run shows in the UI of a lasting server: how far it is, what came of it, how to go on.

An embedded server dies with its run, so nothing is written to one.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from latentloom.flows.inspect import sample_rows
from latentloom.flows.need import find_need
from latentloom.flows.server import EMBEDDED
from latentloom.report.picture import sheet_as_jpeg
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.storage.store import Store
from latentloom.tasks.published import is_published

UPDATE_SECONDS = 5.0


@task(name="chunks", cache_policy=NO_CACHE, persist_result=False)
def reuse(hits: int) -> State[None]:
    """Stand for a stage of which nothing has to be computed."""
    return Completed(name="Cached", message=f"{hits} chunks of earlier runs")


@contextmanager
def shown(store: Store, plan: Plan, run: str) -> Iterator[Callable[[], None]]:
    """Show a run's progress; yields what to call now and then.

    Args:
        store: The run's store.
        plan: Its plan.
        run: Its id.
    """
    if os.environ.get(EMBEDDED):
        yield lambda: None
        return
    present = store.present(list(plan.keys()))
    published = plan.output is not None and is_published(plan, plan.output)
    need = find_need(plan, present, published=published, look=store.present)
    lasting = [
        stage.chunks[index].key
        for stage in plan.stages
        if not stage.transient
        for index in need.get(stage.name, ())
    ]
    for stage in plan.stages:
        hits = sum(chunk.key in present for chunk in stage.chunks)
        if hits and not need.get(stage.name):
            reuse.with_options(task_run_name=f"{stage.name} 0-{len(stage.chunks) - 1}")(hits)
    made: Any = create_progress_artifact(
        progress=0.0 if lasting else 100.0, description=f"chunks of run {run}"
    )
    looked = time.monotonic()

    def tick() -> None:
        nonlocal looked
        if lasting and time.monotonic() - looked >= UPDATE_SECONDS:
            looked = time.monotonic()
            done = len(store.present(lasting))
            update_progress_artifact(made, progress=100.0 * done / len(lasting))

    try:
        yield tick
    except Exception as error:
        create_markdown_artifact(_failure(store, run, error), key=_key(run))
        raise
    if lasting:
        update_progress_artifact(made, progress=100.0)


def show_result(plan: Plan, state: RunState) -> None:
    """Show what each stage did, and source and result side by side."""
    if os.environ.get(EMBEDDED):
        return
    lines = [
        "| stage | chunks | computed | reused | seconds |",
        "|---|---|---|---|---|",
        *(
            f"| {s.name} | {s.chunks} | {s.computed} | {s.reused} | {s.seconds:.1f} |"
            for s in state.stages
        ),
        *(f"\nwarning: {warning}" for warning in plan.warnings),
    ]
    if state.output is not None and is_published(plan, state.output):
        picture = base64.b64encode(sheet_as_jpeg(sample_rows(plan, state.output))).decode()
        lines += [
            "",
            f"`{state.output}`",
            "",
            f"![source above result](data:image/jpeg;base64,{picture})",
        ]
    create_markdown_artifact("\n".join(lines), key=_key(state.run))


def _failure(store: Store, run: str, error: Exception) -> str:
    return (
        f"{error}\n\nFinished chunks are kept. Retry this flow run, or:\n\n"
        f"    latentloom resume {run} --store {store.uri}\n"
    )


def _key(run: str) -> str:
    return f"run-{run}".lower()
