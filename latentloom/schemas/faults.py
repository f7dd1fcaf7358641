"""One fault of a recipe or batch: its place in the file, what is wrong, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stages import STAGES, stage_tag
from latentloom.schemas.yaml import line_of

_PATH_IN_MESSAGE = re.compile(r"^(?P<path>[a-z_]+(?:\[\d+\])?(?:\.[a-z_]+)*): ")


class Fault:
    """One fault: where, what, and what to do."""

    def __init__(self, location: Sequence[str | int], message: str) -> None:
        self.location = tuple(location)
        self.message = message

    @classmethod
    def of(cls, details: ErrorDetails, data: Mapping[str, Any], schema: type[BaseModel]) -> Fault:
        """Word what Pydantic found in ``data``; field names are compared with those of ``schema``."""
        location = _without_tags(details["loc"], data)
        if details["type"] == "extra_forbidden":
            return cls(location, f"unknown field{_did_you_mean(details['loc'], schema)}")
        if details["type"] == "union_tag_invalid":
            return cls(location, _unknown_tag(details["input"]))
        message = details["msg"].removeprefix("Value error, ")
        if not location and _PATH_IN_MESSAGE.match(message):
            return cls.of_message(message)
        value = details.get("input")
        if details["type"] in ("missing", "value_error") or isinstance(value, dict | list):
            return cls(location, _lower(message))
        return cls(location, f"{_lower(message)}, got {value!r}")

    @classmethod
    def of_message(cls, message: str) -> Fault:
        """Split a message that begins with a path, as validators of whole files write them."""
        match = _PATH_IN_MESSAGE.match(message)
        if match is None:
            return cls((), message)
        parts = re.findall(r"[a-z_]+|\d+", match["path"])
        location = [int(part) if part.isdigit() else part for part in parts]
        return cls(location, message[match.end() :])

    def line(self, document: Any, file: Path, overridden: Sequence[str]) -> str:
        """Return ``file:line: path: message``; what an override wrote has no line."""
        path = _dotted(self.location)
        names = _dotted_by_name(self.location, document)
        number = line_of(document, self.location) if document is not None else None
        if path in overridden or names in overridden:
            where = "override"
        else:
            where = f"{file}:{number}" if number else str(file)
        return f"{where}: {path}: {self.message}" if path else f"{where}: {self.message}"


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _dotted_by_name(location: Sequence[str | int], document: Any) -> str:
    parts = [str(part) for part in location]
    if len(parts) > 1 and parts[0] == "stages" and isinstance(document, Mapping):
        index = int(parts[1]) if parts[1].isdigit() else 0
        stages = document.get("stages") or []
        if index < len(stages) and isinstance(stages[index], Mapping):
            parts[1] = str(stages[index].get("name", stages[index].get("op")))
    return ".".join(parts)


def _without_tags(location: Sequence[str | int], data: Any) -> tuple[str | int, ...]:
    """Drop what Pydantic adds to a location: union tags, and the 0 of a lone prompts mapping."""
    kept: list[str | int] = []
    node = data
    for position, part in enumerate(location):
        last = position == len(location) - 1 and isinstance(part, str)
        if isinstance(node, dict) and part not in node and stage_tag(node) == part:
            continue
        if isinstance(node, dict) and (part in node or last):
            kept.append(part)
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            kept.append(part)
            node = node[part] if part < len(node) else None
    return tuple(kept)


def _unknown_tag(stage: Mapping[str, Any]) -> str:
    """Say which part of a stage's tag is unknown: the op, or an editor's kind."""
    if "op" not in stage:
        return "op is missing"
    field, prefix = ("kind", "edit:") if stage["op"] == "edit" else ("op", "")
    known = sorted(tag.removeprefix(prefix) for tag in STAGES if tag.startswith(prefix))
    if not prefix:
        known = sorted({tag.partition(":")[0] for tag in STAGES})
    wrong = str(stage.get(field))
    close = difflib.get_close_matches(wrong, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"{field} {wrong!r} is not known; {hint}"


def _did_you_mean(location: Sequence[str | int], schema: type[BaseModel]) -> str:
    wrong = str(location[-1])
    known = _known_fields(location[:-1], schema)
    close = difflib.get_close_matches(wrong, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known fields: {', '.join(sorted(known))}" if known else "; remove it"


def _known_fields(location: Sequence[str | int], schema: type[BaseModel]) -> list[str]:
    """Walk a schema along a location, and list the fields of the model it ends at."""
    model: type[BaseModel] | None = schema
    for part in location:
        if isinstance(part, str) and part in STAGES and model is Recipe:
            model = STAGES[part]
        elif isinstance(part, str) and model is not None and part in model.model_fields:
            inner = _models_in(model.model_fields[part].annotation)
            model = inner[0] if inner else model
    return list(model.model_fields) if model is not None else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return [model for model in found if "op" not in model.model_fields]


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
