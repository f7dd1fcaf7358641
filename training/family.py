"""The parts of the embedded family as files: loading what is exported, exporting what was trained."""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel, CLIPTokenizer

EMBEDDED: Final = Path(__file__).resolve().parent.parent / "latentloom/models/embedded/sprites"


def load_vae() -> AutoencoderKL:
    """Return the exported VAE, frozen, in float32."""
    return _frozen(AutoencoderKL.from_pretrained(_image("vae"), torch_dtype=torch.float32))


def load_tokenizer() -> CLIPTokenizer:
    """Return the exported tokenizer."""
    return CLIPTokenizer.from_pretrained(_image("tokenizer"))


def load_text_encoder() -> CLIPTextModel:
    """Return the exported text encoder, frozen, in float32."""
    return _frozen(CLIPTextModel.from_pretrained(_image("text_encoder"), dtype=torch.float32))


def load_unet() -> UNet2DConditionModel:
    """Return the exported image UNet, frozen, in float32."""
    return _frozen(UNet2DConditionModel.from_pretrained(_image("unet"), torch_dtype=torch.float32))


def widen(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Return a trainable copy that takes more input channels, and does not look at them yet."""
    wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": in_channels})
    weights = unet.state_dict()
    narrow = weights.pop("conv_in.weight")
    weights["conv_in.weight"] = torch.zeros_like(wide.conv_in.weight)
    weights["conv_in.weight"][:, : narrow.shape[1]] = narrow
    wide.load_state_dict(weights)
    return wide.train().requires_grad_(True).to(memory_format=torch.channels_last)


def export(part: str, save: Callable[[Path], object]) -> None:
    """Replace a folder of the family by what `save(folder)` writes, so that no reader sees half of it."""
    target = EMBEDDED / part
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    save(half)
    half.chmod(0o755)
    for path in half.rglob("*.safetensors"):
        path.chmod(0o644)
    for path in half.rglob("config.json"):
        # Where a model began is a path of the machine that trained it.
        path.write_text(
            re.sub(
                r'"_name_or_path": "[^"]*/sprites/',
                '"_name_or_path": "embedded:sprites/',
                path.read_text(),
            )
        )
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    half.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def export_model(part: str, model: Any) -> None:
    """Write a model as float16 safetensors, and leave it in float32."""
    export(part, copy.deepcopy(model).half().save_pretrained)


def export_pipeline(part: str, name: str, unet: UNet2DConditionModel) -> None:
    """Write a UNet with the image model's other parts beside it, as a diffusers pipeline."""
    export_model(f"{part}/unet", unet)
    for other in ("vae", "text_encoder", "tokenizer", "scheduler"):
        export(part + "/" + other, lambda folder, other=other: _copy(_image(other), folder))
    index = json.loads(_image("model_index.json").read_text())
    del index["_diffusers_version"]
    export_index(part, {**index, "_class_name": name})


def export_index(part: str, index: dict[str, object]) -> None:
    """Write the `model_index.json` of a part."""
    path = EMBEDDED / part / "model_index.json"
    half = path.with_name(f".{path.name}.part")
    half.write_text(json.dumps({**index, "_diffusers_version": "0.42.1"}, indent=2) + "\n")
    half.rename(path)


def pixels(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Return frames `(B, H, W, 3)` as a float tensor `(B, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, frames: NDArray[np.uint8]) -> torch.Tensor:
    """Return normalised latents `(B, 4, H/4, W/4)` of frames `(B, H, W, 3)`: the posterior's mean."""
    mean, std = _statistics(vae)
    parts = pixels(frames).split(32)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in parts])
    return (latents - mean) / std


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Return the frames of normalised latents."""
    mean, std = _statistics(vae)
    parts = (latents * std + mean).split(32)
    images = torch.cat([vae.decode(part).sample for part in parts]).clamp(-1, 1)
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _statistics(vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    return mean, torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)


def _copy(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)


def _image(part: str) -> Path:
    return EMBEDDED / "image" / part


def _frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)
