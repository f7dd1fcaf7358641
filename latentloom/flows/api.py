"""What Python programs use: compile a recipe, run it as a Prefect flow, open what it made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentloom.flows.compile import compile_plan
from latentloom.flows.inspect import stage_records
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import find_run, register
from latentloom.schemas.plan import Plan
from latentloom.schemas.recipe import Recipe
from latentloom.storage.store import Store

if TYPE_CHECKING:
    from dask.array import Array as DaskArray
    from prefect import Flow

DEFAULT_STORE = ".latentloom"


@dataclass(frozen=True)
class CompiledRecipe:
    """A recipe's plan, and the store that it runs on."""

    store: Store
    plan: Plan

    def flow(self, *, workers: int = 1, overwrite: bool = False) -> Flow[..., Any]:
        """Register a run and return its Prefect flow, to call.

        Args:
            workers: Task groups that run at once, in threads of this process: they read and commit side
                by side, and take turns with the models.
            overwrite: Whether a video that is not ours may be replaced.
        """
        from latentloom.flows.edit import flow_of

        state = register(self.store, self.plan, overwrite=overwrite)
        return flow_of(self.store.uri, state.run, workers=workers)


def compile_recipe(recipe: Recipe, *, store: str = DEFAULT_STORE) -> CompiledRecipe:
    """Look up what a recipe depends on, and compile it.

    Args:
        recipe: From ``load_recipe``.
        store: Path or fsspec URI.

    Raises:
        LatentloomError: If the recipe, its source or its models are at fault.
    """
    opened = Store.open(store)
    return CompiledRecipe(opened, compile_plan(recipe, resolve(recipe, opened)))


def open_latents(run: str, stage: str, *, store: str = DEFAULT_STORE) -> DaskArray:
    """Open what a stage of a run made, as one lazy dask array with frames first.

    Overlapping windows are blended as readers do; of noise, which is never blended, a frame is that of the
    window that starts last. ``export`` writes the same.

    Args:
        run: Run id, the beginning of one, or ``latest``.
        stage: Name of the stage.
        store: Path or fsspec URI.

    Raises:
        UsageError: If there is no such run or stage, or it is not finished.
    """
    from latentloom.storage.lazy import lazy_array

    opened = Store.open(store, create=False)
    records, overlaps = stage_records(opened, find_run(opened, run), stage)
    return lazy_array(opened, records, overlaps=overlaps)
