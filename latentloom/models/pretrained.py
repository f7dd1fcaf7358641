"""Load one component from one folder: allowed classes only, safetensors only, never the network.

The only importer of diffusers and transformers, so that remote code is off before either is loaded.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch

from latentloom.errors import ModelError, PolicyError
from latentloom.models.folders import require_safetensors
from latentloom.models.offload import ON_CPU, Placement, place

# Class in a config -> library that has it. Nothing else is instantiated.
ALLOWED_CLASSES: Final = {
    "AutoencoderKL": "diffusers",
    "UNet2DConditionModel": "diffusers",
    "UNetMotionModel": "diffusers",
    "UNet3DConditionModel": "diffusers",
    "MotionAdapter": "diffusers",
    "ControlNetModel": "diffusers",
    "T2IAdapter": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPModel": "transformers",
    "CLIPVisionModelWithProjection": "transformers",
    "CLIPTokenizer": "transformers",
}
DTYPES: Final = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def library(name: str) -> Any:
    """Import diffusers or transformers with remote code switched off."""
    os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"
    module = importlib.import_module(name)
    # Both talk on stderr while they load; what matters is raised by us.
    module.utils.logging.set_verbosity(logging.CRITICAL)
    module.utils.logging.disable_progress_bar()
    return module


def read_config(path: Path) -> dict[str, Any]:
    """Return a config file's content.

    Raises:
        ModelError: If the file is missing or no JSON object.
        PolicyError: If it names code to import.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; give a folder in diffusers' layout") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no JSON object")
    if "auto_map" in config:
        raise PolicyError(f"{path} asks to import code of its own (auto_map); refused")
    return config


def class_name(config: dict[str, Any]) -> str:
    """Return the class that a component's config names."""
    names = config.get("architectures") or [config.get("_class_name")]
    return str(names[0])


def load_component(
    folder: Path,
    *,
    expected: tuple[str, ...],
    variant: str | None = None,
    placement: Placement = ON_CPU,
) -> Any:
    """Load a module with its weights.

    Args:
        folder: Holds `config.json` and the weights.
        expected: Classes that fit here.
        variant: As in diffusers: `fp16` reads `diffusion_pytorch_model.fp16.safetensors`.
        placement: Where it goes, and what it computes in, whatever dtype the file has.

    Raises:
        ModelError: If a file is missing or damaged, or the weights do not fit the config.
        PolicyError: If the class is not allowed.
    """
    name = allowed_class(read_config(folder / "config.json"), folder, expected)
    require_safetensors(folder, variant)
    if placement.dtype not in DTYPES:
        raise ModelError(f"dtype {placement.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    home = ALLOWED_CLASSES[name]
    kwargs = {"dtype" if home == "transformers" else "torch_dtype": DTYPES[placement.dtype]}
    try:
        module, facts = getattr(library(home), name).from_pretrained(
            str(folder),
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **kwargs,
        )
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded as {name}: {error}") from error
    missing = sorted(facts["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights of {name}, among them {missing[0]}"
        )
    return place(module.eval().requires_grad_(False), placement)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of safetensors by name.

    Raises:
        ModelError: If it is damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; fetch or copy it again") from error


def allowed_class(config: dict[str, Any], folder: Path, expected: tuple[str, ...]) -> str:
    """Return the class to instantiate.

    Raises:
        PolicyError: If the class is not on the allow-list.
        ModelError: If it is, but does not belong here.
    """
    name = class_name(config)
    if name in expected:
        return name
    if name in ALLOWED_CLASSES:
        raise ModelError(f"{folder} holds a {name}; expected {' or '.join(expected)}")
    raise PolicyError(
        f"{folder} names the class {name}, which is not on the list of allowed ones: "
        f"{', '.join(sorted({*ALLOWED_CLASSES, *expected}))}"
    )


def load_tokenizer(folder: Path) -> Any:
    """Load a CLIP tokenizer.

    Raises:
        ModelError: If it is missing or damaged.
        PolicyError: If another class is named.
    """
    config = read_config(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class", "CLIPTokenizer")).removesuffix("Fast")
    if name != "CLIPTokenizer":
        raise PolicyError(f"{folder} names the tokenizer {name}; only CLIPTokenizer is allowed")
    try:
        return library("transformers").CLIPTokenizer.from_pretrained(
            str(folder), local_files_only=True
        )
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded as a tokenizer: {error}") from error
