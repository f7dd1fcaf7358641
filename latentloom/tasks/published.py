"""Tell whether a video is in place and ours. Torch is not imported: ``plan`` asks too.

The sidecar ``<output>.json`` lists the digest of the video, and of the one it replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from latentloom.errors import UsageError
from latentloom.schemas.plan import Plan

_BLOCK = 1 << 20
_NAME_MARGIN = 40
"""Bytes by which the names of drafts are longer than the video's."""
_SIDECAR_FIELDS = frozenset({"plan", "run", "sha256", "replaces"})


def is_published(plan: Plan, output: str) -> bool:
    """Tell whether the video of a plan is in place, by its sidecar and its bytes."""
    sidecar, path = read_sidecar(output), Path(output)
    return (
        sidecar.get("plan") == plan.digest
        and path.is_file()
        and sidecar.get("sha256") == file_digest(path)
    )


def check_output(output: str, *, source: str, overwrite: bool) -> None:
    """Refuse a path that cannot be written, and to replace a video or sidecar that is not ours.

    Raises:
        UsageError: If something lies at the path that no sidecar lists, or it is the source, the file beside
            it is no sidecar, or nothing can be written there.
    """
    try:
        _check_place(Path(output))
        _check_owner(Path(output), source=source, overwrite=overwrite)
    except OSError as error:
        raise UsageError(
            f"cannot write {output}: {error.strerror or error}; choose another output.uri"
        ) from error


def _check_place(path: Path) -> None:
    for taken in (path, sidecar_path(path)):
        if taken.is_dir():
            raise UsageError(f"{taken} is a folder; choose another output.uri")
    folder = path.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: {folder} is no folder; choose another output.uri")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot write {path}: no permission to write into {folder}; choose another output.uri"
        )
    longest = os.pathconf(folder, "PC_NAME_MAX") - _NAME_MARGIN
    if len(os.fsencode(path.name)) > longest:
        raise UsageError(
            f"the name of {path} is longer than {longest} bytes; choose another output.uri"
        )


def _check_owner(path: Path, *, source: str, overwrite: bool) -> None:
    if Path(source).exists():
        for taken in (path, sidecar_path(path)):
            if taken.exists() and taken.samefile(source):
                raise UsageError(f"{taken} is the source itself; choose another output.uri")
    if overwrite:
        return
    sidecar, beside = read_sidecar(str(path)), sidecar_path(path)
    if beside.exists() and not sidecar.keys() >= _SIDECAR_FIELDS:
        raise UsageError(
            f"{beside} exists and is not ours; choose another output.uri, or pass --overwrite"
        )
    if path.exists() and file_digest(path) not in (sidecar.get("sha256"), sidecar.get("replaces")):
        raise UsageError(
            f"{path} exists and is not ours; choose another output.uri, or pass --overwrite"
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
