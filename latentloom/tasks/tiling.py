"""Give a stage's models the tiles that its recipe asks for."""

from __future__ import annotations

from latentloom.models.protocols import VAE, Denoiser
from latentloom.models.tiled import TiledDenoiser, TiledVAE
from latentloom.schemas.tiling import Tiling


def tiled_vae(vae: VAE, tiling: Tiling | None) -> VAE:
    """Return a VAE that works by tiles, or as it is."""
    if tiling is None:
        return vae
    size, overlap = tiling.in_units(vae.downscale)
    return TiledVAE(vae, size, overlap)


def tiled_denoiser(denoiser: Denoiser, tiling: Tiling | None, downscale: int) -> Denoiser:
    """Return a denoiser that works by tiles, or as it is.

    Args:
        denoiser: The denoiser.
        tiling: In pixels.
        downscale: Pixels along one side of its latent pixels.
    """
    if tiling is None:
        return denoiser
    size, overlap = tiling.in_units(downscale)
    return TiledDenoiser(denoiser, size, overlap)
