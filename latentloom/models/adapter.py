"""T2I-Adapter: features of a condition, added to an image denoiser's encoder.

They depend on the condition alone, so they are computed once for all steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import DenoiserAround
from latentloom.models.fits import adapter_fault, adapter_levels
from latentloom.models.image import ImageDenoiser, Residuals
from latentloom.models.offload import execution_device
from latentloom.models.protocols import VAE, Denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class T2IAdapter:
    """`T2IAdapter`, checked against the UNet that it was made for."""

    module: Any
    downscale: int
    """Pixels along one side of a latent pixel."""

    @property
    def condition_channels(self) -> int:
        """Channels of the condition: 1 for sketches and edges, 3 for a picture."""
        return int(self.module.config.in_channels)

    def feature_shapes(self, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
        """Return the shapes `(c, h, w)` of the features of one frame, for latents of h x w pixels."""
        rows, columns = height * self.downscale, width * self.downscale
        return tuple(
            (channels, -(-rows // pixels), -(-columns // pixels))
            for channels, pixels in adapter_levels(self.module.config)
        )

    @torch.inference_mode()
    def features(self, condition: torch.Tensor) -> torch.Tensor:
        """Return the features of a condition, those of all levels in a row.

        Args:
            condition: `(F, condition_channels, H, W)` in [0, 1].

        Returns:
            `(F, n)`, float32: micro-batches cut one tensor, whatever the levels' shapes.

        Raises:
            ModelError: If the condition has another number of channels.
        """
        if condition.shape[1] != self.condition_channels:
            raise ModelError(
                f"the T2I-Adapter takes {self.condition_channels} channels, not a condition of"
                f" shape {tuple(condition.shape)}"
            )
        device = execution_device(self.module)
        levels = self.module(condition.contiguous().to(device, self.module.dtype))
        return torch.cat([level.float().flatten(1) for level in levels], dim=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
    """A T2I-Adapter in use."""

    adapter: T2IAdapter
    scale: float = 1.0
    """Factor of its features."""
    timesteps: frozenset[int] | None = None
    """Timesteps at which it acts; all by default."""


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedDenoiser(DenoiserAround[ImageDenoiser]):
    """An image denoiser steered by T2I-Adapters; its `control` are their features, in order."""

    adapters: tuple[Adapted, ...]

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise with the features `control`; see `Denoiser.predict`.

        Raises:
            ModelError: If features are missing or left over.
        """
        if len(control) != len(self.adapters):
            raise ModelError(
                f"{len(self.adapters)} T2I-Adapter(s) were given {len(control)} features"
            )
        parts = [
            _levels(use, features, latents)
            for use, features in zip(self.adapters, control, strict=True)
            if use.timesteps is None or timestep in use.timesteps
        ]
        added = [sum(levels[1:], levels[0]) for levels in zip(*parts, strict=True)]
        return self.denoiser.predict_steered(
            latents, timestep, text, Residuals(intrablock=added) if added else None
        )


def with_adapters(denoiser: Denoiser, adapters: Sequence[Adapted]) -> AdaptedDenoiser:
    """Attach T2I-Adapters to a denoiser.

    Raises:
        ModelError: If the denoiser takes no features.
    """
    if not isinstance(denoiser, ImageDenoiser):
        raise ModelError(f"{type(denoiser).__name__} cannot be steered by a T2I-Adapter")
    return AdaptedDenoiser(denoiser, tuple(adapters))


def check_adapter_fits(adapter: T2IAdapter, base: ImageDenoiser, vae: VAE) -> None:
    """Check that features have the shapes of the UNet's levels.

    Raises:
        ModelError: If they do not; it prints both.
    """
    fault = adapter_fault(adapter.module.config, base.module.config, vae.downscale)
    if fault is not None:
        raise ModelError(fault)


def _levels(use: Adapted, features: torch.Tensor, latents: torch.Tensor) -> list[torch.Tensor]:
    shapes = use.adapter.feature_shapes(*latents.shape[-2:])
    sizes = [math.prod(shape) for shape in shapes]
    flat = torch.split(features.to(latents.device), sizes, dim=1)
    return [use.scale * part.reshape(-1, *shape) for part, shape in zip(flat, shapes, strict=True)]
