"""Hand recipes and batches to deployments on a Prefect server, now or on a schedule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from ulid import ULID

from latentloom.errors import LatentloomError, UsageError
from latentloom.flows.credentials import VARIABLE as CREDENTIALS
from latentloom.flows.environment import quiet_environment
from latentloom.schemas.batch import Batch
from latentloom.schemas.recipe import Recipe

EDIT_VIDEO = "edit-recipe/edit-video"
EDIT_ARCHIVE = "edit-archive/edit-archive"
WORK_POOL = "latentloom"


@dataclass(frozen=True)
class Submitted:
    """What was handed over."""

    flow_run: str
    """Id on the server."""
    name: str
    run: str | None
    """Id in the store; nothing for a batch, whose videos have one each."""
    url: str | None
    """Where the server's UI shows it."""


def submit_recipe(
    recipe: Recipe, store: str, *, deployment: str = EDIT_VIDEO, queue: str | None = None
) -> Submitted:
    """Hand a recipe to a deployment.

    Args:
        recipe: From ``load_recipe``; its paths must mean the same where the work is done.
        store: Path or URI of the store, likewise.
        deployment: ``flow/deployment``.
        queue: Work queue of the deployment's pool, whose workers do it.

    Raises:
        UsageError: If no server is named, or it has no such deployment.
        LatentloomError: If the server cannot be reached.
    """
    run = str(ULID())
    parameters = {
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "run": run,
        **_opened_with(store),
    }
    return _submit(deployment, parameters, run, queue)


def submit_batch(
    path: Path,
    store: str,
    *,
    deployment: str = EDIT_ARCHIVE,
    queue: str | None = None,
    **parameters: Any,
) -> Submitted:
    """Hand a batch file to a deployment; see ``submit_recipe``."""
    given = {"batch": str(path.resolve()), **_opened_with(store), **parameters}
    return _submit(deployment, given, None, queue)


def schedule_batch(
    batch: Batch,
    path: Path,
    store: str,
    *,
    cron: str | None = None,
    interval_seconds: float | None = None,
    work_pool: str = WORK_POOL,
    queue: str | None = None,
    **parameters: Any,
) -> str:
    """Deploy a batch on a schedule; one tick at a time runs, and one that finds another at work does nothing.

    Returns:
        ``flow/deployment``.

    Raises:
        UsageError: If no server is named, or the schedule is none.
        LatentloomError: If the server cannot be reached.
    """
    _need_server()
    from latentloom.flows.deployed import edit_archive

    given = {"batch": str(path.resolve()), **_opened_with(store), **parameters}
    with _reached():
        deployment: Any = edit_archive.to_deployment(
            batch.name,
            cron=cron,
            interval=None if interval_seconds is None else timedelta(seconds=interval_seconds),
            parameters=given,
            work_pool_name=work_pool,
            work_queue_name=queue,
            entrypoint_type=_module_path(),
        )
        deployment.apply()
    return f"edit-archive/{batch.name}"


def serve() -> None:
    """Serve the deployments from this process until it is stopped; needs no work pool.

    Raises:
        UsageError: If no server is named.
    """
    _need_server()
    from prefect import serve as serve_deployments

    from latentloom.flows.deployed import edit_archive, edit_recipe, prune_store

    kind = _module_path()
    named: list[Any] = [
        edit_recipe.to_deployment("edit-video", entrypoint_type=kind),
        edit_archive.to_deployment("edit-archive", entrypoint_type=kind),
        prune_store.to_deployment("prune-store", entrypoint_type=kind),
    ]
    with _reached():
        serve_deployments(*named, print_starting_message=False)


def _submit(
    deployment: str, parameters: dict[str, Any], run: str | None, queue: str | None
) -> Submitted:
    _need_server()
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    with _reached():
        try:
            made: Any = run_deployment(
                deployment,
                parameters=parameters,
                timeout=0,
                as_subflow=False,
                work_queue_name=queue,
            )
        except ObjectNotFound as error:
            raise UsageError(
                f"the server has no deployment {deployment}; make it with `prefect deploy --all`,"
                " or run `latentloom serve`"
            ) from error
    return Submitted(str(made.id), str(made.name), run, _url(made))


def _need_server() -> None:
    quiet_environment()
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(
            "no server: set PREFECT_API_URL, such as http://127.0.0.1:4200/api"
            " (`prefect server start` starts one)"
        )


def _module_path() -> Any:
    from prefect.types.entrypoint import EntrypointType

    return EntrypointType.MODULE_PATH


def _opened_with(store: str) -> dict[str, str]:
    """Return the store, and the name of the block that holds its credentials, if any."""
    place = store if "://" in store else str(Path(store).resolve())
    block = os.environ.get(CREDENTIALS)
    return {"store": place, **({"credentials": block} if block else {})}


def _url(made: Any) -> str | None:
    from prefect.utilities.urls import url_for

    return url_for("flow-run", made.id)


@contextmanager
def _reached() -> Iterator[None]:
    """Turn what a client says of a server that is not there into one clear error."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        server = os.environ["PREFECT_API_URL"]
        raise LatentloomError(
            f"the Prefect server at {server} cannot be reached ({type(error).__name__}: {error});"
            " check PREFECT_API_URL"
        ) from error
