"""Write YAML files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def write_yaml(path: Path, data: Any) -> None:
    """Write plain data as YAML."""
    with path.open("w") as file:
        YAML(typ="rt", pure=True).dump(data, file)
