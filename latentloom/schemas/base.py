"""What every schema shares: strict, frozen, documented by the docstring under each field."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

_CLOCK = re.compile(r"^(?:(?P<h>\d+):)?(?P<m>\d{1,2}):(?P<s>\d{1,2}(?:\.\d+)?)$")
_SECONDS = re.compile(r"^(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|min|h)?$")
_UNITS = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
MAX_SECONDS = 1_000_000_000
"""Thirty years: longer than any video, and a number that ticks of any time base can count."""


class Schema(BaseModel):
    """Base of all schemas: unknown fields are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def parse_seconds(value: Any) -> Any:
    """Read ``12.5``, ``12.5s``, ``250ms``, ``2m``, ``01:02.5`` or ``01:02:03.250`` as seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        # Pydantic turns ValueError into a fault of the file, but not TypeError.
        raise ValueError("expected seconds, such as 2.5, 2.5s or 00:01:02.500")  # noqa: TRY004
    seconds = _seconds(value.strip()) if isinstance(value, str) else value
    if abs(seconds) > MAX_SECONDS or seconds != seconds:
        raise ValueError(f"expected a time of at most {MAX_SECONDS} s")
    return float(seconds)


def _seconds(text: str) -> float:
    if clock := _CLOCK.match(text):
        hours, minutes, seconds = clock.group("h") or "0", clock.group("m"), clock.group("s")
        return float(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if plain := _SECONDS.match(text):
        return float(plain.group("value")) * _UNITS[plain.group("unit")]
    raise ValueError("expected seconds, such as 2.5, 2.5s or 00:01:02.500")


Seconds = Annotated[float, BeforeValidator(parse_seconds, json_schema_input_type=float | str)]


def canonical_json(value: Any) -> bytes:
    """Write JSON that is the same for equal values: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def digest(value: Any) -> str:
    """Return the sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def readable(num_bytes: float) -> str:
    """Write bytes as a person reads them.

    Examples:
        >>> readable(1536), readable(3 << 30)
        ('1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"
