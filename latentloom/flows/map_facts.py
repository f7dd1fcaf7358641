"""Look a recipe's side inputs up: digest, size and number of frames. Torch is not imported."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from latentloom.errors import MediaError
from latentloom.flows.digests import file_digest
from latentloom.media.images import list_images
from latentloom.media.probe import probe
from latentloom.schemas.base import digest
from latentloom.schemas.conditions import MapInput
from latentloom.schemas.facts import MapFacts
from latentloom.schemas.media import VideoInfo
from latentloom.storage.localize import localize, sources_folder
from latentloom.storage.store import Store


def map_facts(name: str, spec: MapInput, store: Store) -> MapFacts:
    """Look a side input up, or find what is known of it in the cache.

    Raises:
        MediaError: If it is missing or damaged, or the images of a folder differ in size.
    """
    folder = Path(spec.uri)
    if folder.is_dir():
        return _folder_facts(spec.uri, folder, store)
    path = localize(spec.uri, sources_folder(), field=f"maps.{name}.uri")
    info = _probe(path, store)
    return MapFacts(
        uri=spec.uri,
        path=str(path),
        digest=file_digest(path, store),
        width=info.display_width,
        height=info.display_height,
        num_frames=info.num_frames,
        info=info,
    )


def map_digest(facts: MapFacts, store: Store) -> str:
    """Return the digest that a side input has now.

    Raises:
        MediaError: If it has gone.
    """
    if facts.info is not None:
        return file_digest(localize(facts.uri, sources_folder(), field="maps"), store)
    folder = Path(facts.path)
    if not folder.is_dir():
        raise MediaError(f"there is no folder {folder} any more; put it back, or name another map")
    return _folder_digest(folder, store)


def _folder_facts(uri: str, folder: Path, store: Store) -> MapFacts:
    images = list_images(folder)
    sizes = {path: _size(path, store) for path in images}
    first = sizes[images[0]]
    for path, size in sizes.items():
        if size != first:
            raise MediaError(
                f"{path} is {size[0]}x{size[1]}, but {images[0].name} is {first[0]}x{first[1]};"
                " give all images of a folder one size"
            )
    return MapFacts(
        uri=uri,
        path=str(folder),
        digest=_folder_digest(folder, store),
        width=first[0],
        height=first[1],
        num_frames=len(images),
    )


def _folder_digest(folder: Path, store: Store) -> str:
    return digest([file_digest(path, store) for path in list_images(folder)])


def _size(path: Path, store: Store) -> tuple[int, int]:
    info = _probe(path, store)
    return info.display_width, info.display_height


def _probe(path: Path, store: Store) -> VideoInfo:
    name = digest([file_digest(path, store), "map", version("av")])
    cached = store.cached("probe", name)
    if cached is not None:
        return VideoInfo.model_validate_json(json.dumps(cached))
    info = probe(path)
    store.put_cached("probe", name, info.model_dump(mode="json"))
    return info
