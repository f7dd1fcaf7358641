"""Pictures and texts in one space (CLIP), to measure edits: how well frames fit a text, and each other.

F frames, H x W pixels, T texts, D numbers. Embeddings have unit length: their products are cosines.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import torch

from latentloom.errors import ModelError
from latentloom.models.folders import resolve_folder
from latentloom.models.offload import ON_CPU, Placement
from latentloom.models.pretrained import load_component, load_tokenizer, read_config

# Frames in a call, to bound memory.
_FRAMES: Final = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Contrastive:
    """`CLIPModel` with its tokenizer and what its pictures are normalised by."""

    tokenizer: Any
    module: Any
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @torch.inference_mode()
    def embed_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Embed frames `(F, 3, H, W)` in [-1, 1] as `(F, D)`, from their middle square."""
        parts = [self._embed_pictures(part) for part in torch.split(frames, _FRAMES)]
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Embed texts as `(T, D)`; what the context has no room for is left out."""
        return torch.cat([self._embed_text(text) for text in texts])

    def _embed_pictures(self, frames: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v).view(shape) for v in (self.image_mean, self.image_std))
        square = middle_square(frames.float(), int(self.module.config.vision_config.image_size))
        pixels = ((square + 1) / 2 - mean.to(square.device)) / std.to(square.device)
        output = self.module.get_image_features(pixels.to(self.module.device, self.module.dtype))
        return _unit(output.pooler_output)

    def _embed_text(self, text: str) -> torch.Tensor:
        context = int(self.module.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(text, max_length=context, truncation=True, return_tensors="pt")
        output = self.module.get_text_features(tokens.input_ids.to(self.module.device))
        return _unit(output.pooler_output)


def load_contrastive(folder: str | Path, *, placement: Placement = ON_CPU) -> Contrastive:
    """Load a CLIP model with its tokenizer and `preprocessor_config.json`.

    Args:
        folder: A path, or `embedded:sprites/contrastive`.
        placement: Where it goes, and what it computes in.

    Raises:
        ModelError: If something is missing or damaged.
        PolicyError: If the class is not allowed.
    """
    root = resolve_folder(folder)
    module = load_component(root, expected=("CLIPModel",), placement=placement)
    path = root / "preprocessor_config.json"
    config = read_config(path)
    mean, std = (tuple(config.get(key) or ()) for key in ("image_mean", "image_std"))
    if not len(mean) == len(std) == 3:
        raise ModelError(f"{path} should give image_mean and image_std of 3 channels")
    return Contrastive(load_tokenizer(root), module, mean, std)


def middle_square(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Scale frames `(F, C, H, W)` until the shorter side is `size`, and cut the middle out."""
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        scale = size / min(height, width)
        shape = (max(size, round(height * scale)), max(size, round(width * scale)))
        frames = torch.nn.functional.interpolate(frames, shape, mode="bicubic", antialias=True)
        frames = frames.clamp(-1, 1)
    top, left = (frames.shape[-2] - size) // 2, (frames.shape[-1] - size) // 2
    return frames[..., top : top + size, left : left + size]


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=-1)
