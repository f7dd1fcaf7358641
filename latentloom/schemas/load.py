"""From a file and ``key=value`` overrides to a recipe, or to every fault of it in one go."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ValidationError

from latentloom.errors import PolicyError, RecipeError, UsageError
from latentloom.schemas.batch import BATCH_KEYS, Batch
from latentloom.schemas.faults import Fault
from latentloom.schemas.recipe import LoraSpec, ModelSpec, Recipe, wiring_faults
from latentloom.schemas.yaml import parse_scalar, plain, read_yaml

_SCHEME = re.compile(r"^(?!file://)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CHAIN = re.compile(r"^[a-z][a-z0-9+.-]*::", re.IGNORECASE)
_EMBEDDED = "embedded:"
SchemaT = TypeVar("SchemaT", bound=BaseModel)
AnyWeights = TypeVar("AnyWeights", ModelSpec, LoraSpec)


def load_recipe(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    roots: Sequence[Path] = (),
    defaults: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Recipe:
    """Read a recipe.

    Paths in the file are relative to the file and confined to its folder, the working directory and
    ``roots``, links followed; paths in overrides are trusted and relative to the working directory.
    Both come out absolute. A source may be remote; whether its scheme is allowed is seen when it is fetched.

    Args:
        path: The YAML file.
        overrides: ``dotted.path=value``; a stage is addressed by its name.
        roots: More folders that a file may point into.
        defaults: Fields by section, for those that neither file nor overrides set.

    Raises:
        RecipeError: With every fault, each with its line.
        UsageError: If an override has no ``=`` or no place to go.
        PolicyError: If the file points outside the folders it is confined to.
    """
    return build_recipe(
        read_yaml(Path(path)), Path(path), overrides, roots=roots, defaults=defaults
    )


def build_recipe(
    document: Any,
    file: Path,
    overrides: Sequence[str] = (),
    *,
    roots: Sequence[Path] = (),
    defaults: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    places: Mapping[str, str] = MappingProxyType({}),
) -> Recipe:
    """Build a recipe from what a file holds; see ``load_recipe``.

    Args:
        document: What ``read_yaml`` returned, or plain data, which has no lines.
        file: Where it comes from; paths are relative to its folder.
        overrides: As in ``load_recipe``.
        roots: As in ``load_recipe``.
        defaults: As in ``load_recipe``.
        places: Trusted paths by dotted key, such as ``source.uri``, written as they are.
    """
    if not isinstance(document, Mapping):
        raise RecipeError(f"{file}: a recipe is a mapping that begins with version: 1")
    data = plain(document)
    overridden = [apply_override(data, text) for text in overrides]
    for key, place in places.items():
        section, _, field = key.partition(".")
        given = data.get(section)
        data[section] = {**(given if isinstance(given, dict) else {}), field: place}
    _fill(data, defaults)
    recipe = _validate(Recipe, data, document, file, overridden)
    trusted = {name for name in overridden if name.endswith(("uri", "path", "loras"))} | set(places)
    return _with_absolute_paths(recipe, file.resolve().parent, trusted, roots)


def is_batch(path: str | os.PathLike[str]) -> bool:
    """Tell a batch file from a recipe by its fields.

    Raises:
        RecipeError: If it cannot be read.
    """
    document = read_yaml(Path(path))
    return isinstance(document, Mapping) and bool(BATCH_KEYS & set(document))


def load_batch(path: str | os.PathLike[str]) -> tuple[Batch, Any]:
    """Read a batch file.

    Returns:
        The batch, and the file's document, for the lines of a recipe in it.

    Raises:
        RecipeError: With every fault, each with its line.
    """
    file = Path(path)
    document = read_yaml(file)
    if not isinstance(document, Mapping):
        raise RecipeError(f"{file}: a batch is a mapping that begins with version: 1")
    return _validate(Batch, plain(document), document, file, []), document


def _fill(data: dict[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> None:
    for section, values in defaults.items():
        given = data.get(section, {})
        if isinstance(given, dict):
            data[section] = {**values, **given}


def validate_recipe(data: Mapping[str, Any], *, name: str = "recipe") -> Recipe:
    """Build a recipe from plain data; faults are reported as ``load_recipe`` does, without lines."""
    return _validate(Recipe, dict(data), None, Path(name), [])


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with ``key=value`` pairs on its stages, prompts or seed applied.

    Raises:
        UsageError: If a key names anything else: only these can hold for a range of frames.
        RecipeError: If a value is wrong.
    """
    data = recipe.model_dump(mode="json")
    for text in overrides:
        if text.partition(".")[0] not in ("stages", "prompts"):
            raise UsageError(
                f"override {text!r}: only stages and prompts can differ within a video"
            )
        apply_override(data, text)
    changed = validate_recipe(data, name="override")
    if [(s.name, s.op, s.inputs) for s in changed.stages] != [
        (s.name, s.op, s.inputs) for s in recipe.stages
    ]:
        raise UsageError(f"overrides {' '.join(overrides)} change which stages there are")
    return changed


def apply_override(data: dict[str, Any], text: str) -> str:
    """Write one ``key=value`` into raw recipe data, and return the dotted key."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"override {text!r} is not key=value, such as stages.fuse.alpha=0.4")
    node: Any = data
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, list) and parts[0] == "prompts" and not part.isdigit():
            for entry in node:
                entry[part] = parse_scalar(value)
            return key
        where = _child(node, part, ".".join(parts[: depth + 1]))
        if depth == len(parts) - 1:
            node[where] = parse_scalar(value)
        elif isinstance(node, dict):
            if not isinstance(node.get(where), dict | list):
                node[where] = {}
            node = node[where]
        else:
            node = node[where]
    return key


def _child(node: Any, part: str, dotted: str) -> Any:
    if isinstance(node, dict):
        return part
    names = [item.get("name", item.get("op")) for item in node if isinstance(item, dict)]
    if part in names:
        return names.index(part)
    if part.isdigit() and int(part) < len(node):
        return int(part)
    known = ", ".join(str(name) for name in names) or f"0..{len(node) - 1}"
    raise UsageError(f"override {dotted!r}: no {part!r} here; there are: {known}")


def _validate(
    schema: type[SchemaT],
    data: dict[str, Any],
    document: Any,
    file: Path,
    overridden: Sequence[str],
) -> SchemaT:
    try:
        validated = schema.model_validate(data)
    except ValidationError as error:
        faults = [
            Fault.of(details, data, schema)
            for details in error.errors(include_url=False, include_context=False)
        ]
    else:
        faults = list(_path_faults(validated)) if isinstance(validated, Recipe) else []
        if not faults:
            return validated
    messages = {fault.message for fault in faults}
    faults += [Fault.of_message(text) for text in _wiring(data) if text not in messages]
    lines = [fault.line(document, file, overridden) for fault in faults]
    raise RecipeError(list(dict.fromkeys(lines)))


def _wiring(data: Mapping[str, Any]) -> list[str]:
    stages = data.get("stages")
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        return []
    names = [str(stage.get("name", stage.get("op", ""))) for stage in stages]
    inputs = [stage.get("inputs") for stage in stages]
    return wiring_faults(
        [
            (name, [str(item) for item in wanted] if isinstance(wanted, list) else ())
            for name, wanted in zip(names, inputs, strict=True)
        ]
    )


def _path_faults(recipe: Recipe) -> Iterator[Fault]:
    """Find places that no recipe may name, whoever vouches for it."""
    named: dict[tuple[str | int, ...], str | None] = {("source", "uri"): recipe.source.uri}
    for location, spec in _weights_named(recipe):
        inner = PurePosixPath(spec.subfolder or "")
        if inner.is_absolute() or ".." in inner.parts:
            yield Fault(
                (*location, "subfolder"),
                f"{spec.subfolder!r} leaves the model; name a folder inside it",
            )
        named[(*location, "path")] = spec.path
        named[(*location, "subfolder")] = spec.subfolder
    for name, side in recipe.maps.items():
        named[("maps", name, "uri")] = side.uri
    if recipe.output is not None:
        named[("output", "uri")] = recipe.output.uri
        if _SCHEME.match(recipe.output.uri) or _CHAIN.match(recipe.output.uri):
            yield Fault(("output", "uri"), "remote outputs are not written; give a local path")
    for place, text in named.items():
        if text is not None and "\0" in text:
            yield Fault(place, "holds a NUL character; remove it")


def _weights_named(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], ModelSpec | LoraSpec]]:
    """Yield every model and LoRA, and where in the recipe it stands."""
    for name, spec in recipe.models.items():
        yield ("models", name), spec
        for index, lora in enumerate(spec.loras):
            yield ("models", name, "loras", index), lora


def _with_absolute_paths(
    recipe: Recipe, folder: Path, trusted: set[str], roots: Sequence[Path]
) -> Recipe:
    allowed = [folder, Path.cwd(), *roots]

    def absolute(uri: str, key: str, inner: str | None = None) -> str:
        if key in trusted or f"{key.partition('.loras.')[0]}.loras" in trusted:
            return str(_local(uri).expanduser().absolute())
        path = folder / _local(uri)
        if inner is not None:
            confined(path / inner, key, allowed)
        return str(confined(path, key, allowed))

    update: dict[str, Any] = {
        "models": _models_with_absolute_paths(recipe, absolute),
        "maps": dict(recipe.maps),
    }
    for name, side in recipe.maps.items():
        if not _SCHEME.match(side.uri):
            uri = absolute(side.uri, f"maps.{name}.uri")
            update["maps"][name] = side.model_copy(update={"uri": uri})
    if not _SCHEME.match(recipe.source.uri):
        uri = absolute(recipe.source.uri, "source.uri")
        update["source"] = recipe.source.model_copy(update={"uri": uri})
    if recipe.output is not None:
        uri = absolute(recipe.output.uri, "output.uri")
        update["output"] = recipe.output.model_copy(update={"uri": uri})
    return recipe.model_copy(update=update)


def _models_with_absolute_paths(
    recipe: Recipe, absolute: Callable[[str, str, str | None], str]
) -> dict[str, ModelSpec]:
    def placed(spec: AnyWeights, key: str) -> AnyWeights:
        if spec.path is None or spec.path.startswith(_EMBEDDED):
            return spec
        path = absolute(spec.path, f"{key}.path", spec.subfolder)
        return spec.model_copy(update={"path": path})

    models = {}
    for name, spec in recipe.models.items():
        key = f"models.{name}"
        loras = [placed(lora, f"{key}.loras.{i}") for i, lora in enumerate(spec.loras)]
        models[name] = placed(spec, key).model_copy(update={"loras": tuple(loras)})
    return models


def _local(uri: str) -> Path:
    """Return the path that a path or ``file://`` URI means."""
    return Path(unquote(urlsplit(uri).path) if uri.lower().startswith("file://") else uri)


def confined(path: Path, key: str, allowed: Sequence[Path]) -> Path:
    """Return a path with links followed, if it lies in one of the folders that are allowed.

    Raises:
        PolicyError: If it does not; ``key`` names the field that points there.
    """
    try:
        resolved = path.resolve()
    # Python 3.11 and 3.12 raise RuntimeError at a loop of links.
    except (OSError, RuntimeError) as error:
        raise PolicyError(f"{key}: {path} cannot be followed ({error}); check its links") from error
    if any(resolved.is_relative_to(folder.resolve()) for folder in allowed):
        return resolved
    raise PolicyError(
        f"{key}: {path} lies outside the recipe's folder and the working directory;"
        f" give it on the command line ({key}=...), or list its folder in LATENTLOOM_ROOTS"
    )
