"""The flows that deployments run: a recipe, an archive, a look after the store.

``prefect.yaml`` and ``latentloom serve`` name them by module, so that any worker with latentloom installed
can run them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.runtime import flow_run
from ulid import ULID

from latentloom.flows.batch import edit_archive
from latentloom.flows.compile import compile_plan
from latentloom.flows.credentials import use_credentials
from latentloom.flows.edit import run_in_flow, thread_runner
from latentloom.flows.engine import session
from latentloom.flows.inspect import kept_keys
from latentloom.flows.launch import find_needed, run_on
from latentloom.flows.notify import Ending, announced, resume_command
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import read_plan, read_state, register
from latentloom.schemas.base import readable
from latentloom.schemas.load import load_recipe
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.run import RunState
from latentloom.schemas.settings import SCHEDULER, read_settings
from latentloom.storage.maintenance import prune
from latentloom.storage.store import Store

__all__ = ["edit_archive", "edit_recipe", "prune_store"]


def _flow_run_name() -> str:
    recipe: Recipe | str = flow_run.get_parameters()["recipe"]
    if isinstance(recipe, str):
        return Path(recipe).stem
    return f"{Path(recipe.source.uri).name} / {recipe.name}"


@flow(
    name="edit-recipe",
    flow_run_name=_flow_run_name,
    persist_result=False,
    task_runner=thread_runner(1),
)
def edit_recipe(
    recipe: Recipe | str,
    store: str = ".latentloom",
    overrides: list[str] | None = None,
    run: str | None = None,
    overwrite: bool = False,
    credentials: str | None = None,
) -> dict[str, Any]:
    """Edit the video of a recipe; a retry adopts the plan of the first try and resumes from its records.

    Args:
        recipe: A recipe, or the path of one on the machine that runs the flow.
        store: Path or URI of the store.
        overrides: ``key=value`` pairs; only for a path.
        run: Id for the run, a ULID; one made from the flow run's id by default.
        overwrite: Whether an output that is not ours may be replaced.
        credentials: Name of a Secret block with options for remote files; by default the environment's.

    Returns:
        The run's state as plain data.

    Raises:
        LatentloomError: What went wrong; finished chunks are kept.
    """
    run_id = run or str(ULID.from_uuid(UUID(str(flow_run.id))))
    with announced(Ending("run", run_id, _flow_run_name(), "(Retry this flow run)")) as ending:
        use_credentials(credentials)
        opened = Store.open(store)
        if run_id not in opened.runs():
            loaded = load_recipe(recipe, overrides or ()) if isinstance(recipe, str) else recipe
            plan = compile_plan(loaded, resolve(loaded, opened))
            register(opened, plan, overwrite=overwrite, run_id=run_id)
        ending.resume = resume_command(run_id, opened.uri)
        ended = _run(opened, run_id)
        ending.tell_of(RunState.model_validate(ended))
    return ended


def _run(store: Store, run: str) -> dict[str, Any]:
    """Run a registered plan here, or on the workers of the scheduler that this machine's settings name."""
    scheduler = os.environ.get(SCHEDULER) or read_settings().scheduler
    if scheduler is None:
        return run_in_flow(store.uri, run)
    plan, state = read_plan(store, run), read_state(store, run)
    with session(scheduler=scheduler) as found:
        return run_on(
            found, store, plan, run, find_needed(store, plan, state.output), tick=lambda: None
        )


@flow(name="prune-store", persist_result=False)
def prune_store(
    store: str = ".latentloom", dry_run: bool = False, credentials: str | None = None
) -> str:
    """Delete chunks that no registered run needs, and what killed runs left; nothing under a day old.

    Args:
        store: Path or URI of the store.
        dry_run: Only count.
        credentials: Name of a Secret block with options for remote files; by default the environment's.

    Returns:
        What was freed, in words.
    """
    use_credentials(credentials)
    opened = Store.open(store, create=False)
    pruned = prune(opened, keep=kept_keys(opened), dry_run=dry_run)
    freed = readable(sum(removed.bytes for removed in pruned.removed))
    return f"{'would free' if dry_run else 'freed'} {freed} in {len(pruned.removed)} pieces"
