"""Models that see frames tile by tile: their memory follows the tile, not the frame.

A tile knows nothing of the rest of its frame. What a model takes from the whole of it are mostly the
statistics of its group norms; those come from a small copy of the frame, every so many pixels of it.

F frames, H x W pixels, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from latentloom.models.denoisers import DenoiserAround, UNetDenoiser
from latentloom.models.norms import norms_as_in
from latentloom.models.protocols import VAE, Denoiser
from latentloom.models.vae import KLAutoencoder
from latentloom.ops.tiles import in_tiles


@dataclasses.dataclass(frozen=True, eq=False)
class TiledVAE:
    """A VAE that encodes and decodes by tiles of `size` latent pixels, which overlap by `overlap`."""

    vae: VAE
    size: int
    overlap: int

    @property
    def downscale(self) -> int:
        """As the VAE's."""
        return self.vae.downscale

    @property
    def channels(self) -> int:
        """As the VAE's."""
        return self.vae.channels

    @property
    def scaling_factor(self) -> float:
        """As the VAE's."""
        return self.vae.scaling_factor

    @property
    def device(self) -> torch.device:
        """As the VAE's."""
        return self.vae.device

    def encode_latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames; see `VAE.encode_latents`."""
        small = _small(frames, self.size * self.downscale)
        encoder = self.vae.module.encoder if isinstance(self.vae, KLAutoencoder) else None
        with _norms(encoder, lambda: self.vae.encode_latents(small)):
            return in_tiles(
                self.vae.encode_latents,
                frames,
                size=self.size,
                overlap=self.overlap,
                scale_in=self.downscale,
            )

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents; see `VAE.decode_latents`."""
        small = _small(latents, self.size)
        decoder = self.vae.module.decoder if isinstance(self.vae, KLAutoencoder) else None
        with _norms(decoder, lambda: self.vae.decode_latents(small)):
            return in_tiles(
                self.vae.decode_latents,
                latents,
                size=self.size,
                overlap=self.overlap,
                scale_out=self.downscale,
            )


@dataclasses.dataclass(frozen=True, eq=False)
class TiledDenoiser(DenoiserAround[Denoiser]):
    """A denoiser whose prediction is the mean of its predictions for overlapping tiles."""

    size: int
    """Side of a tile in latent pixels."""
    overlap: int
    """Latent pixels that neighbours share."""

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise; each condition is of the latents' height and width, and cut like them."""

        def predict(tile: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
            return self.denoiser.predict(tile, timestep, text, *parts)

        small = [_small(part, self.size) for part in (latents, *control)]
        module = self.denoiser.module if isinstance(self.denoiser, UNetDenoiser) else None
        with _norms(module, lambda: predict(*small)):
            return in_tiles(predict, latents, *control, size=self.size, overlap=self.overlap)


def _small(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Return some pixels of `(F, c, h, w)`, `side` at most along each side; noise keeps its variance."""
    height, width = (min(side, length) for length in pictures.shape[-2:])
    return torch.nn.functional.interpolate(pictures, size=(height, width), mode="nearest-exact")


def _norms(module: Any, look: Callable[[], object]) -> AbstractContextManager[None]:
    return nullcontext() if module is None else norms_as_in(module, look)
