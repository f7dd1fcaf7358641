"""Find the folder that holds a model: a path, what ships with the package, or a hub snapshot.

Torch is not imported here: planning looks at folders too.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from latentloom.errors import ModelError

EMBEDDED = "embedded:"
TEXT_PATTERNS = ("*.json", "*.txt", "*.model")
"""Configurations and tokenizers."""
WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers begin the name of a component's weights.

A file of another name is the whole pipeline again, or a LoRA.
"""
_WEIGHT_ENDS = (".safetensors", "-[0-9]*.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of weights that torch loads by unpickling."""


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


def inside(root: Path, subfolder: str | None) -> Path:
    """Return a folder of a model's.

    Raises:
        ModelError: If it leaves the model's.
    """
    if subfolder is None:
        return root
    if ".." in Path(subfolder).parts or Path(subfolder).is_absolute():
        raise ModelError(f"{subfolder} leaves {root}")
    return root / subfolder


def is_of_variant(name: str, variant: str | None) -> bool:
    """Tell whether a file is a variant's weights: ``model.fp16.safetensors`` is of ``fp16`` alone."""
    stem, dot, suffix = name.rpartition(".")
    if (dot, suffix) != (".", "safetensors"):
        return False
    return f".{variant}" in stem if variant else "." not in stem


def require_safetensors(folder: Path, variant: str | None) -> None:
    """Check that a component's folder has weights that can be loaded.

    Raises:
        ModelError: If there are none, or they are pickled.
    """
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(is_of_variant(name, variant) for name in files):
        return
    pickled = [f for f in files if f.endswith(PICKLED)]
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when loaded; "
            f"run `latentloom convert-model` on it and use what it writes"
        )
    of_variant = f" of variant {variant!r}" if variant else ""
    raise ModelError(
        f"{folder} holds no safetensors weights{of_variant}; where a repository has .bin files alone,"
        " download it and run `latentloom convert-model` on it"
    )


def find_weights(folder: Path, name: str | None) -> Path:
    """Return the one file of safetensors in a folder, or the one of a name.

    Raises:
        ModelError: If it is not there, is pickled, or there are several and none is named.
    """
    held = sorted(folder.glob("*.safetensors"))
    if not held:
        require_safetensors(folder, None)
    found = [path for path in held if name in (None, path.name)]
    if len(found) != 1:
        listed = ", ".join(path.name for path in held)
        raise ModelError(f"{folder} holds {listed}; name one of them with weight_name")
    return found[0]


def find_lora(folder: Path, weight_name: str | None) -> Path:
    """Return the one safetensors file of a folder, or the one named; a path to a file is that file.

    Raises:
        ModelError: If there is none, only pickled ones, or several and no name.
    """
    if folder.suffix in PICKLED and folder.is_file():
        raise ModelError(
            f"{folder} is pickled, which can run code when loaded; run `latentloom convert-model`"
            " on its folder and use what it writes"
        )
    named = folder / weight_name if weight_name else folder
    if named.is_file():
        return named
    if weight_name or not folder.is_dir():
        raise ModelError(f"there is no LoRA {named}; give a safetensors file or a folder with one")
    require_safetensors(folder, None)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{folder} holds {len(found)} files; set weight_name to one of {names}")
    return found[0]


def fetch_snapshot(
    repo_id: str,
    *,
    revision: str | None,
    subfolder: str | None = None,
    variant: str | None = None,
    also: str | None = None,
    only: str | None = None,
) -> Path:
    """Return the folder of a hub repository, downloading what is missing.

    Args:
        repo_id: ``owner/name``.
        revision: Branch, tag or commit.
        subfolder: Where set, what lies outside of it is left out.
        variant: Where set, weights of other variants are left out.
        also: The name of weights that are called neither as diffusers nor as transformers call theirs.
        only: Where set, the name of the one file that is wanted.

    Raises:
        ModelError: If it cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    dot = f".{variant}" if variant is not None else ""
    weights = [f"{name}{dot}{end}" for name in WEIGHT_NAMES for end in _WEIGHT_ENDS]
    weights += [also] if also is not None else []
    patterns = [*TEXT_PATTERNS, *weights, *(f"*/{name}" for name in weights)]
    if only is not None:
        patterns = [only, f"*/{only}"]
    if subfolder is not None:
        patterns = [f"{subfolder.strip('/')}/{pattern}" for pattern in patterns]
    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=patterns)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"model {repo_id} (revision {revision or 'main'}) cannot be fetched: {reason};"
            " check repo_id and the network, or give the path of a local copy"
        ) from error
    return Path(folder)
