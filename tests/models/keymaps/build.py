"""Compare our classes with published checkpoints' listings, and write the key maps that tests read.

    git clone https://github.com/arenasys/stable-diffusion-webui-model-toolkit toolkit
    python -m tests.models.keymaps.build toolkit/components

A listing has a line `name [shape]` for each tensor of a checkpoint as it was first published. diffusers'
loader of single files, which renames and splits those tensors, is run on them on the meta device; names and
shapes must then be those of the class. Without a listing a key map is the class's own, and proves nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from latentloom.models.pretrained import library

FOLDER = Path(__file__).parent
COMMIT = "e19dd46e61f04436832b258f7ae6adfc72bca346"
"""Of the repository whose listings were compared."""

Shapes = dict[str, list[int]]
Weights = dict[str, torch.Tensor]


def checkpoints() -> dict[str, dict[str, Any]]:
    """Return the table of checkpoints by the name of their key map."""
    table: dict[str, dict[str, Any]] = json.loads((FOLDER / "checkpoints.json").read_text())
    return table


def read_shapes(name: str) -> Shapes:
    """Return the names and shapes of a key map."""
    shapes: Shapes = json.loads(
        gzip.decompress((FOLDER / "tensors" / f"{name}.json.gz").read_bytes())
    )
    return shapes


def shapes_digest(shapes: Mapping[str, list[int]]) -> str:
    """Return the sha256 of names and shapes, in the order of names."""
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()


def build_module(class_name: str, config: Mapping[str, Any]) -> Any:
    """Build a class from its published configuration, without memory for its weights."""
    with torch.device("meta"):
        transformers = library("transformers")
        if class_name == "CLIPTextModel":
            return transformers.CLIPTextModel(transformers.CLIPTextConfig(**config))
        if class_name == "CLIPVisionModelWithProjection":
            return transformers.CLIPVisionModelWithProjection(
                transformers.CLIPVisionConfig(**config)
            )
        return getattr(library("diffusers"), class_name)(**config)


def module_shapes(module: Any) -> Shapes:
    """Return the names and shapes of a module's weights."""
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def read_listing(path: Path) -> Weights:
    """Return a listing's tensors on the meta device."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {name: torch.empty(json.loads(shape), device="meta") for name, shape in rows}


def renamed(weights: Weights, module: Any, class_name: str) -> Weights:
    """Name and split a listing's tensors as diffusers does when it loads them."""
    files = library("diffusers").loaders.single_file_utils
    converters: dict[str, Callable[[Weights], Weights]] = {
        "UNet2DConditionModel": lambda w: files.convert_ldm_unet_checkpoint(
            {f"{files.LDM_UNET_KEY}{k}": v for k, v in w.items()}, module.config
        ),
        "AutoencoderKL": lambda w: files.convert_ldm_vae_checkpoint(w, module.config),
        "ControlNetModel": lambda w: files.convert_controlnet_checkpoint(w, module.config),
        "CLIPTextModel": lambda w: _text(w, module, files),
    }
    return converters[class_name](weights)


def _text(weights: Weights, module: Any, files: Any) -> Weights:
    if "text_projection" in weights:  # OpenCLIP
        weights = files.convert_open_clip_checkpoint(module, weights, prefix="")
        # Stable Diffusion 2.x reads the last but one of its 24 layers, and is published without what follows.
        unused = (".layers.23.", "text_projection")
        weights = {k: v for k, v in weights.items() if not any(part in k for part in unused)}
    named = {name.removeprefix("text_model."): value for name, value in weights.items()}
    # Not a weight: 0 to 76, which transformers counts by itself.
    return {name: value for name, value in named.items() if not name.endswith("position_ids")}


def main(listings: Path) -> None:
    """Compare all, and write the key maps."""
    table = checkpoints()
    for name, entry in table.items():
        module = build_module(entry["class"], entry["config"])
        shapes = module_shapes(module)
        if entry["listing"] is not None:
            weights = renamed(read_listing(listings / entry["listing"]), module, entry["class"])
            found = {key: list(value.shape) for key, value in weights.items()}
            differing = {k for k in {*found, *shapes} if found.get(k) != shapes.get(k)}
            assert not differing, f"{name}: {sorted(differing)[:8]}"
            shapes = found
        entry["verified"] = entry["listing"] is not None
        entry["num_tensors"], entry["sha256"] = len(shapes), shapes_digest(shapes)
        entry["num_parameters"] = sum(torch.Size(shape).numel() for shape in shapes.values())
        packed = gzip.compress(json.dumps(dict(sorted(shapes.items()))).encode(), mtime=0)
        (FOLDER / "tensors" / f"{name}.json.gz").write_bytes(packed)
        sys.stdout.write(f"{name}: {len(shapes)} tensors, verified {entry['verified']}\n")
    (FOLDER / "checkpoints.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
