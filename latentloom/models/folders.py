"""Find the folder that holds a model: a path, what ships with the package, or a hub snapshot.

Torch is not imported here: planning looks at folders too.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from latentloom.errors import ModelError

EMBEDDED = "embedded:"
HUB_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What a snapshot holds: configurations, tokenizers and safetensors, never pickles or code."""


def resolve_folder(path: str | Path) -> Path:
    """Return the folder that a recipe's ``path`` means; ``embedded:`` ships with the package.

    Raises:
        ModelError: If it does not exist.
    """
    text = str(path)
    folder = Path(text)
    if text.startswith(EMBEDDED):
        root = Path(str(importlib.resources.files("latentloom.models") / "embedded"))
        folder = root.joinpath(*text.removeprefix(EMBEDDED).split("/"))
        if ".." in folder.parts:
            raise ModelError(f"{path} leaves the embedded models")
    if not folder.is_dir():
        raise ModelError(f"there is no model folder {path}; check models.*.path")
    return folder


def fetch_snapshot(repo_id: str, *, revision: str | None, variant: str | None) -> Path:
    """Return the folder of a hub repository, downloading what is missing.

    Args:
        repo_id: ``owner/name``.
        revision: Branch, tag or commit.
        variant: Where set, weights of other variants are left out.

    Raises:
        ModelError: If it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = list(HUB_PATTERNS)
    if variant is not None:
        patterns = ["*.json", "*.txt", "*.model", f"*.{variant}.safetensors", f"*.{variant}-*"]
    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {repo_id} (revision {revision or 'main'}) cannot be fetched: {reason};"
            " check repo_id and the network, or give the path of a local copy"
        ) from error
    return Path(folder)
