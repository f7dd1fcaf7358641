"""Look up what a plan depends on: the source's index and digest, the models' digests, the machine.

Digests are cached in the store by path, size and time of change. Neither torch nor Prefect is imported: a
child process, where the work will run, is asked what ``device: auto`` is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from latentloom.errors import MediaError, ModelError
from latentloom.flows.calibration import read_measured, read_seconds
from latentloom.flows.digests import file_digest
from latentloom.flows.map_facts import map_digest, map_facts
from latentloom.flows.memory import free_memory_bytes, memory_bytes
from latentloom.flows.model_facts import model_facts
from latentloom.media.join import check_container
from latentloom.media.probe import probe
from latentloom.media.scenes import find_cuts
from latentloom.schemas.base import digest
from latentloom.schemas.facts import Facts, MachineFacts, MapFacts, ModelFacts, SourceFacts
from latentloom.schemas.media import VideoInfo
from latentloom.schemas.plan import Plan
from latentloom.schemas.recipe import Recipe
from latentloom.storage.localize import localize, sources_folder
from latentloom.storage.store import Store

_ASK_DEVICE = (
    "import torch; there = torch.cuda.is_available();"
    " print('cuda' if there else 'cpu', torch.cuda.mem_get_info()[1] if there else 0)"
)


def resolve(recipe: Recipe, store: Store) -> Facts:
    """Look up everything that the plan of a recipe depends on.

    Raises:
        MediaError: If the source or a map is missing or damaged.
        ModelError: If a model is missing or of no known kind.
    """
    source = resolve_source(recipe, store)
    return Facts(
        source=source,
        container_problems=_container_problems(recipe, source.info),
        models=resolve_models(recipe, store),
        maps=resolve_maps(recipe, store),
        machine=resolve_machine(recipe, store),
        measured_bytes=read_measured(store),
        measured_seconds=read_seconds(store),
    )


def check_facts(plan: Plan, store: Store) -> None:
    """Check that what a plan was made from is still so, before anything is computed under its keys.

    Raises:
        MediaError: If the source or a map has changed.
        ModelError: If a model has changed, or torch, PyAV or the device is another one.
    """
    facts, again = plan.facts, "; run the recipe again, which makes a new plan"
    path = localize(facts.source.uri, sources_folder())
    if file_digest(path, store) != facts.source.digest:
        raise MediaError(f"{facts.source.uri} has changed since the plan was made{again}")
    for name, side in facts.maps.items():
        if map_digest(side, store) != side.digest:
            raise MediaError(f"map {name!r} has changed since the plan was made{again}")
    for name, model in resolve_models(plan.recipe, store).items():
        if model.digest != facts.models[name].digest:
            raise ModelError(f"model {name!r} has changed since the plan was made{again}")
    here = resolve_machine(plan.recipe, store)
    for field in ("device", "torch", "av"):
        planned, found = getattr(facts.machine, field), getattr(here, field)
        if planned != found:
            raise ModelError(f"the plan was made for {field} {planned}, here is {found}{again}")


def resolve_source(recipe: Recipe, store: Store) -> SourceFacts:
    """Probe the source and digest it, or find both in the cache."""
    source = recipe.source
    path = localize(source.uri, sources_folder())
    if not path.is_file():
        raise MediaError(f"{source.uri}: no such video; check source.uri")
    sha256 = file_digest(path, store)
    name = digest([sha256, source.video_stream, source.on_damage, version("av")])
    cached = store.cached("probe", name)
    if cached is not None:
        info = VideoInfo.model_validate_json(json.dumps(cached))
    else:
        info = probe(path, video_stream=source.video_stream, on_damage=source.on_damage)
        store.put_cached("probe", name, info.model_dump(mode="json"))
    cuts = _scene_cuts(recipe, store, path, info, name)
    return SourceFacts(uri=source.uri, path=str(path), digest=sha256, info=info, cuts=cuts)


def _scene_cuts(
    recipe: Recipe, store: Store, path: Path, info: VideoInfo, probed: str
) -> tuple[int, ...]:
    """Find the scene cuts of the whole video, or find them in the cache."""
    if recipe.windows.scenes != "auto":
        return ()
    threshold = recipe.windows.scene_threshold
    name = digest([probed, threshold])
    cached = store.cached("scenes", name)
    if isinstance(cached, list):
        return tuple(int(str(frame)) for frame in cached)
    cuts = find_cuts(path, info, threshold=threshold)
    store.put_cached("scenes", name, list(cuts))
    return cuts


def resolve_machine(recipe: Recipe, store: Store) -> MachineFacts:
    """Find out where the work will run."""
    wanted = recipe.numerics.device
    root = Path(store.uri.removeprefix("file://"))
    device, gpu_bytes = ("cpu", None) if wanted == "cpu" else _ask_device()
    return MachineFacts(
        device=device if wanted == "auto" else wanted,
        torch=version("torch"),
        av=version("av"),
        memory_bytes=memory_bytes(),
        free_memory_bytes=free_memory_bytes(),
        gpu_bytes=gpu_bytes,
        free_disk_bytes=shutil.disk_usage(root).free if root.exists() else None,
    )


def _container_problems(recipe: Recipe, info: VideoInfo) -> tuple[str, ...]:
    output = recipe.output
    if output is None:
        return ()
    return tuple(check_container(info, Path(output.uri).suffix, output.audio, output.codec))


def resolve_maps(recipe: Recipe, store: Store) -> dict[str, MapFacts]:
    """Look the side inputs of a recipe up."""
    return {name: map_facts(name, spec, store) for name, spec in recipe.maps.items()}


def resolve_models(recipe: Recipe, store: Store) -> dict[str, ModelFacts]:
    """Read the facts of a recipe's models, bases first.

    Raises:
        ModelError: If one is missing or of no known kind.
    """
    found: dict[str, ModelFacts] = {}
    waiting = dict(recipe.models)
    while waiting:
        ready = [n for n, spec in waiting.items() if not waiting.keys() & {spec.base, spec.vae}]
        if not ready:
            raise ModelError(f"models {', '.join(sorted(waiting))} are built on one another")
        for name in sorted(ready, key=lambda name: name != "image"):
            facts = model_facts(name, waiting.pop(name), recipe, found, store)
            found[name] = facts
    return {name: found[name] for name in recipe.models}


def _ask_device() -> tuple[Any, int | None]:
    """Return the device that there is, and the memory of a GPU."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) and sys.platform == "linux":
        return "cpu", None
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_DEVICE], capture_output=True, text=True, check=False
    )
    device, _, size = asked.stdout.strip().partition(" ")
    return ("cuda", int(size)) if device == "cuda" else ("cpu", None)
