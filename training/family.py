"""The parts of the embedded family as files: loading what is exported, exporting what was trained."""

from __future__ import annotations

import copy
import json
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


def export(part: str, save: Callable[[Path], object]) -> None:
    """Replace a folder of the family by what `save(folder)` writes, so that no reader sees half of it."""
    target = EMBEDDED / part
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    save(half)
    half.chmod(0o755)
    for path in half.rglob("*.safetensors"):
        path.chmod(0o644)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    half.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def export_model(part: str, model: Any) -> None:
    """Write a model as float16 safetensors, and leave it in float32."""
    export(part, copy.deepcopy(model).half().save_pretrained)


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


def _image(part: str) -> Path:
    return EMBEDDED / "image" / part


def _frozen(model: Any) -> Any:
    return model.eval().requires_grad_(False)
