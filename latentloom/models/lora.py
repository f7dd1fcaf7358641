"""LoRA: low-rank changes of weights, merged into a model as it is loaded.

A merged model costs what its base costs, and a motion adapter that is built on it inherits the change.
diffusers reads the formats: its own, peft's and kohya's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors
import torch

from latentloom.errors import ModelError
from latentloom.models.pretrained import library

PARTS: Final = ("unet", "text_encoder")
"""Whose weights a file may change; the prefixes of its names."""
METADATA_KEY: Final = "lora_adapter_metadata"
"""Where diffusers keeps peft's configuration in a file's header."""

Weights = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA file, and how much of it is added: 0 is nothing, 1 is as trained."""

    file: Path
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The change of one layer's weight: `factor * up @ down`, of rank r.

    `down` is `(r, inputs)` and `up` is `(outputs, r)`; both have two more dimensions in a convolution.
    """

    down: torch.Tensor
    up: torch.Tensor
    factor: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that it belongs to."""
        return (self.up.shape[0], *self.down.shape[1:])

    def product(self) -> torch.Tensor:
        """Return the change at full size, float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return self.factor * product.reshape(self.shape)


def merge_loras(loras: Sequence[Lora], *, unet: Any, text_encoder: Any | None) -> None:
    """Add LoRAs to the weights of a model, one after another.

    Args:
        loras: Those of scale 0 change nothing.
        unet: A diffusers UNet.
        text_encoder: A transformers CLIP text encoder; nothing if the model borrows its base's.

    Raises:
        ModelError: If a file is damaged, in another format, or made for another model.

    Source: LoRA (2106.09685), section 4.1: W + (alpha / r) B A.
    """
    modules = dict(zip(PARTS, (unet, text_encoder), strict=True))
    for lora in loras:
        if lora.scale == 0:
            continue
        changes = {part: _changes(lora.file, part, *_read(lora.file)) for part in PARTS}
        if not any(changes.values()):
            raise ModelError(f"{lora.file} changes neither a unet nor a text_encoder")
        for part in PARTS:
            if changes[part] and modules[part] is None:
                raise ModelError(
                    f"{lora.file} changes the text encoder, which this model borrows from its"
                    " base; list it in the base's loras"
                )
            _add(lora, changes[part], modules[part])


def _read(path: Path) -> tuple[Weights, dict[str, Any]]:
    """Return matrices under diffusers' names, alphas multiplied in, and peft's configuration."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # An open safetensors file has keys, but cannot be iterated over.
            raw = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        weights, alphas = library(
            "diffusers"
        ).loaders.StableDiffusionLoraLoaderMixin.lora_state_dict(dict(raw))
        config = json.loads(header.get(METADATA_KEY, "{}"))
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path} cannot be read: {error}; fetch or copy it again") from error
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path} is in no format of LoRA that diffusers reads: {error}") from error
    dora = any("dora_scale" in key or "lora_magnitude" in key for key in raw)
    if dora or any(key.endswith((".use_dora", ".use_rslora")) and config[key] for key in config):
        raise ModelError(f"{path} is a variant of LoRA (DoRA, rsLoRA); only plain LoRA is merged")
    for name, alpha in (alphas or {}).items():
        stem = name.removesuffix(".alpha")
        down = stem if stem in weights else f"{stem}.lora.down.weight"
        weights[down] = weights[down].float() * (alpha / len(weights[down]))
    return weights, config


def _changes(
    path: Path, part: str, weights: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, LowRank]:
    """Return the change of each layer of a part, by the layer's name."""
    own = {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
    utils = library("diffusers").utils
    try:
        if own and part == "text_encoder":
            own = utils.convert_state_dict_to_peft(utils.convert_state_dict_to_diffusers(own))
        elif not any(".lora_A." in key for key in own):
            own = utils.convert_unet_state_dict_to_peft(own)
    except ValueError as error:
        raise ModelError(f"{path} is in no format of LoRA that diffusers reads: {error}") from error
    suffixes = (".lora_A.weight", ".lora_B.weight")
    names = {key.removesuffix(suffixes[0]) for key in own if key.endswith(suffixes[0])}
    unknown = sorted(own.keys() - {name + suffix for name in names for suffix in suffixes})
    if unknown or len(own) != 2 * len(names):
        named = unknown[0] if unknown else "half a pair"
        raise ModelError(f"{path} holds {named}, which plain LoRA does not have")
    return {
        name: LowRank(own[name + suffixes[0]], own[name + suffixes[1]], factor)
        for name, factor in _factors(names, own, part, config)
    }


def _factors(
    names: set[str], own: Mapping[str, torch.Tensor], part: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    """Return alpha / r of each layer: 1 where peft's configuration is not there."""
    default = config.get(f"{part}.lora_alpha")
    patterns = config.get(f"{part}.alpha_pattern") or {}
    for name in sorted(names):
        rank = len(own[f"{name}.lora_A.weight"])
        # As peft matches them: a pattern is the end of a name.
        fitting = (a for pattern, a in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
        alpha = next(fitting, default)
        yield name, 1.0 if alpha is None else alpha / rank


@torch.no_grad()
def _add(lora: Lora, changes: Mapping[str, LowRank], module: Any) -> None:
    layers = {} if module is None else dict(module.named_modules())
    for name, change in changes.items():
        # transformers 5 dropped the outer name that published files still have.
        layer = layers.get(name) or layers.get(name.removeprefix("text_model."))
        weight = getattr(layer, "weight", None)
        if weight is None:
            raise ModelError(f"{lora.file} changes {name}, which {type(module).__name__} has not")
        if tuple(weight.shape) != change.shape:
            raise ModelError(
                f"{lora.file} was made for another model: {name} has shape {change.shape} there,"
                f" and {tuple(weight.shape)} in {type(module).__name__}"
            )
        change_here = change.product().to(weight.device)
        weight.copy_((weight.float() + lora.scale * change_here).to(weight.dtype))
