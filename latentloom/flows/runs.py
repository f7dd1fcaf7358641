"""Register runs and keep their state. An unfinished plan's rerun keeps its run id."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

from ulid import ULID

from latentloom.errors import StoreFormatError, UsageError
from latentloom.schemas.plan import PLAN_FORMAT, Plan
from latentloom.schemas.run import RunState
from latentloom.storage.leases import holder
from latentloom.storage.store import Store

STATE_FILE = "state.json"


def register(
    store: Store, plan: Plan, *, overwrite: bool = False, run_id: str | None = None
) -> RunState:
    """Register a plan as a run, before anything of it is looked up.

    Args:
        store: Where.
        plan: The plan.
        overwrite: Whether an output that is not ours may be replaced.
        run_id: Id of the new run, where the caller has promised one.

    Returns:
        A new run, or the unfinished one of the same plan, paths included, that no process works on.
    """
    latest = store.cached("latest-run", plan.digest) if run_id is None else None
    if isinstance(latest, str) and latest in store.runs():
        state = read_state(store, latest)
        unfinished = state.state != "finished" and not is_running(store, state.plan)
        if unfinished and _places(read_plan(store, latest)) == _places(plan):
            return update_state(store, state, overwrite=overwrite, error=None)
    run_id = run_id or str(ULID())
    store.register_run(run_id, plan.model_dump_json().encode())
    store.put_cached("latest-run", plan.digest, run_id)
    state = RunState(
        run=run_id,
        name=plan.recipe.name,
        plan=plan.digest,
        source=plan.facts.source.uri,
        output=plan.output,
        overwrite=overwrite,
    )
    return update_state(store, state)


def lease_name(plan_digest: str) -> str:
    """Return the name of the lease that a process holds while it runs a plan."""
    return f"plan-{plan_digest[:40]}"


def is_running(store: Store, plan_digest: str) -> bool:
    """Tell whether a living process runs a plan."""
    who = holder(store, lease_name(plan_digest))
    return who is not None and not who.is_dead()


def _places(plan: Plan) -> tuple[object, ...]:
    """Return what a plan's digest leaves out, and a run depends on all the same."""
    facts = plan.facts
    folders = {name: model.folder for name, model in facts.models.items()}
    return plan.recipe, facts.source.path, folders, plan.output


def find_run(store: Store, run_id: str) -> str:
    """Return the id of a registered run from an unambiguous beginning of it, or ``latest``.

    Raises:
        UsageError: If there is none, or more than one.
    """
    runs = store.runs()
    if run_id == "latest" and runs:
        return runs[-1]
    matching = [run for run in runs if run.startswith(run_id.upper())]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"{run_id!r} begins {len(matching)} run ids; give more of it")
    raise UsageError(f"store {store.uri} has no run {run_id!r}; `latentloom status` lists its runs")


def read_plan(store: Store, run_id: str) -> Plan:
    """Read the plan of a run.

    Raises:
        StoreFormatError: If a newer version wrote it.
    """
    data = store.read_plan(run_id)
    try:
        return Plan.model_validate_json(data)
    except ValueError as error:
        raise StoreFormatError(
            f"the plan of run {run_id} is not of format {PLAN_FORMAT}; use the version that wrote it,"
            " or run the recipe again"
        ) from error


def read_state(store: Store, run_id: str) -> RunState:
    """Read the state of a run; one that was registered and no more if there is none."""
    data = store.read_run_file(run_id, STATE_FILE)
    if data is not None:
        return RunState.model_validate_json(data)
    plan = read_plan(store, run_id)
    return RunState(
        run=run_id,
        name=plan.recipe.name,
        plan=plan.digest,
        source=plan.facts.source.uri,
        output=plan.output,
    )


def update_state(store: Store, state: RunState, /, **changes: Any) -> RunState:
    """Write a changed state, and return it."""
    changes.setdefault("updated", time.time())
    if changes.get("state") == "running":
        changes |= {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    changed = state.model_copy(update=changes)
    store.put_run_file(state.run, STATE_FILE, changed.model_dump_json(indent=1).encode())
    return changed
