"""Small JSON files that know their own digest, so that a flipped bit is found in them too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pydantic import JsonValue

_SEAL = "check"


def seal(value: Mapping[str, JsonValue]) -> bytes:
    """Write a JSON object and the sha256 of it; equal values give equal bytes."""
    return _canonical({**value, _SEAL: _digest(value)})


def unseal(data: bytes) -> dict[str, JsonValue]:
    """Read a JSON object that ``seal`` wrote.

    Raises:
        ValueError: It is not JSON, or its bytes have changed.
    """
    value = json.loads(data)
    if not isinstance(value, dict) or value.pop(_SEAL, None) != _digest(value):
        raise ValueError("its content does not match its own digest")
    return value


def _digest(value: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _canonical(value: Mapping[str, JsonValue]) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, indent=1)
    return text.encode() + b"\n"
