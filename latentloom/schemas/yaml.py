"""Read YAML that nobody vouches for: size and depth are capped, and every value knows its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import MappingStartEvent, NodeEvent, SequenceStartEvent

from latentloom.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 40
MAX_EVENTS = 200_000

Location = Sequence[str | int]


def read_yaml(path: Path) -> Any:
    """Read one YAML document.

    Returns:
        ruamel's round-trip containers; ``line_of`` finds the lines of what is in them.

    Raises:
        RecipeError: If the file is missing, too large, too deep, or no YAML.
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
        _check_depth(text, name)
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


def _check_depth(text: str, name: str) -> None:
    depth = 0
    for count, event in enumerate(YAML(typ="rt", pure=True).parse(StringIO(text))):
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            depth += 1
        elif isinstance(event, NodeEvent):
            pass
        elif type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent"):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_EVENTS:
            line = event.start_mark.line + 1
            raise RecipeError(f"{name}:{line}: nested deeper or longer than a recipe may be")
