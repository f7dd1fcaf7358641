"""Tell whether a video is in place and ours. Torch is not imported: ``plan`` asks too.

The sidecar ``<output>.json`` lists the digest of the video, and of the one it replaced.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from latentloom.errors import UsageError
from latentloom.schemas.plan import Plan

_BLOCK = 1 << 20


def is_published(plan: Plan, output: str) -> bool:
    """Tell whether the video of a plan is in place, by its sidecar and its bytes."""
    sidecar, path = read_sidecar(output), Path(output)
    return (
        sidecar.get("plan") == plan.digest
        and path.is_file()
        and sidecar.get("sha256") == file_digest(path)
    )


def check_output(output: str, *, source: str, overwrite: bool) -> None:
    """Refuse to replace a video that is not ours.

    Raises:
        UsageError: If something lies at the path that no sidecar lists, or it is the source.
    """
    path = Path(output)
    if path.exists() and path.is_dir():
        raise UsageError(f"{output} is a folder; give output.uri the name of a file")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise UsageError(f"{output} is the source itself; choose another output.uri")
    if overwrite or not path.exists():
        return
    sidecar = read_sidecar(output)
    if file_digest(path) not in (sidecar.get("sha256"), sidecar.get("replaces")):
        raise UsageError(
            f"{output} exists and is not ours; choose another output.uri, or pass --overwrite"
        )


def read_sidecar(output: str) -> dict[str, Any]:
    """Read ``<output>.json``; nothing if it is not there or no sidecar."""
    try:
        data = json.loads(sidecar_path(output).read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def sidecar_path(output: str | Path) -> Path:
    """Return where the facts about a video lie."""
    return Path(f"{output}.json")


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()
