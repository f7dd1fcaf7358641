"""What a store keeps about runs: the plan, events, and small files that may be overwritten."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from latentloom.errors import StoreError, UsageError
from latentloom.schemas.event import Event
from latentloom.storage import layout
from latentloom.storage.backends import Backend


def register(backend: Backend, run_id: str, plan: bytes) -> None:
    """Write a run's plan, digest first; a second try with the same plan is no error."""
    _create_once(backend, layout.plan_digest_path(run_id), digest_line(plan), run_id)
    _create_once(backend, layout.plan_path(run_id), plan, run_id)


def digest_line(plan: bytes) -> bytes:
    """Digest of a plan, as ``sha256sum`` prints it."""
    return f"{hashlib.sha256(plan).hexdigest()}  {layout.PLAN_FILE}\n".encode()


def read_plan(backend: Backend, run_id: str) -> bytes:
    """Read a run's plan and check its digest."""
    try:
        plan = backend.read(layout.plan_path(run_id))
        expected = backend.read(layout.plan_digest_path(run_id))
    except FileNotFoundError as error:
        raise UsageError(
            f"store {backend.uri} has no run {run_id}; `latentloom status` lists its runs"
        ) from error
    if digest_line(plan) != expected:
        raise StoreError(
            f"the plan of run {run_id} in store {backend.uri} does not match its digest; "
            "forget the run and start the recipe again: finished chunks are kept"
        )
    return plan


def registered(backend: Backend) -> list[str]:
    """List the runs that have a plan, oldest first (ULIDs sort by time)."""
    return [run for run in backend.names(layout.RUNS) if _is_registered(backend, run)]


def forget(backend: Backend, run_id: str) -> None:
    """Unregister a run: plan first, then everything else of it."""
    if not _is_registered(backend, run_id):
        raise UsageError(
            f"store {backend.uri} has no run {run_id}; `latentloom status` lists its runs"
        )
    backend.delete(layout.plan_path(run_id))
    backend.delete_folder(layout.run_folder(run_id))


def append_events(backend: Backend, run_id: str, writer: str, events: Sequence[Event]) -> None:
    """Write events as one new file; its name orders it and holds the digest of its content."""
    if not events:
        return
    lines = "".join(event.model_dump_json(exclude_defaults=True) + "\n" for event in events)
    data = lines.encode()
    name = f"{time.time_ns():019d}.{layout.checked_writer(writer)}.{_short_digest(data)}.jsonl"
    backend.write(f"{layout.events_folder(run_id)}/{name}", data)


def read_events(backend: Backend, path: str) -> list[Event]:
    """Read one file of events.

    Raises:
        StoreError: Its content is not what was written.
    """
    try:
        data = backend.read(path)
    except FileNotFoundError:
        return []  # the run was forgotten since it was listed
    try:
        found = [Event.model_validate_json(line) for line in data.splitlines()]
    except ValueError as error:  # pydantic's ValidationError is one
        raise _damaged_events(backend, path, error) from error
    if path.split(".")[-2:-1] != [_short_digest(data)]:
        raise _damaged_events(backend, path, "its digest is not the one in its name")
    return found


def _damaged_events(backend: Backend, path: str, why: object) -> StoreError:
    return StoreError(
        f"{path} in store {backend.uri} is damaged ({why}); "
        "it is history only: delete the file to go on without it"
    )


def _create_once(backend: Backend, path: str, data: bytes, run_id: str) -> None:
    try:
        backend.create(path, data)
    except FileExistsError as error:
        if backend.read(path) != data:
            raise StoreError(
                f"run {run_id} is registered in store {backend.uri} with another plan; "
                "use a new run id"
            ) from error


def _is_registered(backend: Backend, run_id: str) -> bool:
    try:
        backend.info(layout.plan_path(run_id))
    except FileNotFoundError:
        return False
    return True


def _short_digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
