"""Read YAML that nobody vouches for: size and depth are capped, and every value knows its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    NodeEvent,
)

from latentloom.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_NODES = 20_000
"""The pure parser takes about 2 s for so many; a recipe of 64 stages and 1,000 prompts has fewer."""

Location = Sequence[str | int]


def read_yaml(path: Path) -> Any:
    """Read one YAML document.

    Returns:
        ruamel's round-trip containers; ``line_of`` finds the lines of what is in them.

    Raises:
        RecipeError: If the file is missing, too large, too deep, or no YAML, its aliases written out.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise RecipeError(f"{path}: {reason}; give the path of a recipe") from error
    if len(data) > MAX_BYTES:
        raise RecipeError(
            f"{path}: {len(data)} bytes are more than a recipe may have ({MAX_BYTES})"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return parse_yaml(text, name=str(path))


def parse_yaml(text: str, *, name: str) -> Any:
    """Parse one YAML document; ``name`` stands in front of faults."""
    try:
        _check_size(text, name)
        # The pure loader: the C loaders die on deep nesting.
        return YAML(typ="rt", pure=True).load(StringIO(text))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{name}:{line}: not YAML: {error.problem or error.context}") from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error


def parse_scalar(text: str) -> Any:
    """Read the value of ``key=value`` as YAML would; what is no YAML is a string."""
    try:
        _check_size(text, "override")
        value = YAML(typ="rt", pure=True).load(StringIO(text))
    except (YAMLError, ValueError, RecursionError):
        return text
    return plain(value)


def plain(value: Any) -> Any:
    """Turn ruamel's containers and scalars into Python's own."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value if value is None else str(value)


def line_of(document: Any, location: Location) -> int | None:
    """Find the line, from 1, of the value at a location, or of its nearest parent that has one."""
    line = getattr(getattr(document, "lc", None), "line", None)
    node, found = document, None if line is None else line + 1
    for part in location:
        if isinstance(node, Mapping) and part in node:
            found = node.lc.key(part)[0] + 1 if hasattr(node, "lc") else found
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            found = node.lc.item(part)[0] + 1 if hasattr(node, "lc") else found
        else:
            continue
        node = node[part]
    return found


def _check_size(text: str, name: str) -> None:
    """Refuse a text that is too deep or too long with its aliases written out; nothing is built yet."""
    opened: list[_Collection] = []
    named: dict[str | None, tuple[int, int]] = {}
    num_nodes = 0
    for event in YAML(typ="rt", pure=True).parse(StringIO(text)):
        size, height = 0, 0
        if isinstance(event, AliasEvent):
            if event.anchor in [collection.anchor for collection in opened]:
                raise _refused(event, name, f"alias *{event.anchor} stands for what it lies in")
            size, height = named.get(event.anchor, (1, 0))
        elif isinstance(event, CollectionEndEvent):
            closed = opened.pop()
            height = closed.height + 1
            named[closed.anchor] = (num_nodes - closed.nodes_before, height)
        elif isinstance(event, NodeEvent):
            size = 1
            named[event.anchor] = (1, 0)
            if isinstance(event, CollectionStartEvent):
                opened.append(_Collection(event.anchor, num_nodes))
        num_nodes += size
        if opened:
            opened[-1].height = max(opened[-1].height, height)
        if len(opened) + height > MAX_DEPTH or num_nodes > MAX_NODES:
            raise _refused(event, name, "nested deeper or longer than a recipe may be")


@dataclass
class _Collection:
    """A mapping or sequence that is still open."""

    anchor: str | None
    nodes_before: int
    height: int = 0


def _refused(event: Event, name: str, reason: str) -> RecipeError:
    return RecipeError(f"{name}:{event.start_mark.line + 1}: {reason}")
