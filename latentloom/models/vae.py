"""The VAE of diffusers, between pixels and normalised latents; and whether two VAEs agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import torch

from latentloom.errors import ModelError
from latentloom.models.offload import ON_CPU, Placement, execution_device
from latentloom.models.pretrained import load_component, read_config
from latentloom.models.protocols import VAE

# Below this cosine the latents of a test card belong to two latent spaces.
MIN_COSINE: Final = 0.99


@dataclasses.dataclass(frozen=True, eq=False)
class KLAutoencoder:
    """`AutoencoderKL`: the posterior's mean, normalised by the config."""

    module: Any

    @property
    def downscale(self) -> int:
        """One halving for each block but the last."""
        return int(2 ** (len(self.module.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.module.config.latent_channels)

    @property
    def scaling_factor(self) -> float:
        """The config's factor."""
        return float(self.module.config.scaling_factor)

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return execution_device(self.module)

    @torch.inference_mode()
    def encode_latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames `(F, 3, H, W)` in [-1, 1] as `(F, C, h, w)`.

        Raises:
            ModelError: If a side is no multiple of the downscale.
        """
        height, width = frames.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise ModelError(
                f"frames of {width}x{height} do not divide by {self.downscale}; change source.size"
            )
        posterior = self.module.encode(
            frames.contiguous().to(self.device, self.module.dtype)
        ).latent_dist
        shift, scale = self._shift_and_scale()
        return torch.as_tensor(((posterior.mean.float() - shift) * scale).contiguous())

    @torch.inference_mode()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents `(F, C, h, w)` to frames `(F, 3, H, W)`, clamped to [-1, 1]."""
        shift, scale = self._shift_and_scale()
        raw = latents.contiguous().to(self.device, torch.float32) / scale + shift
        frames = self.module.decode(raw.to(self.module.dtype)).sample
        return torch.as_tensor(frames.float().clamp(-1, 1).contiguous())

    def _shift_and_scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = self.module.config
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            shift, scale = torch.tensor(mean), self.scaling_factor / torch.tensor(std)
        else:
            shift = torch.tensor([config.get("shift_factor") or 0.0])
            scale = torch.tensor([self.scaling_factor])
        shape = (1, -1, 1, 1)
        return shift.to(self.device).view(shape), scale.to(self.device).view(shape)


def load_kl_autoencoder(
    folder: Path,
    *,
    variant: str | None = None,
    placement: Placement = ON_CPU,
) -> KLAutoencoder:
    """Load a VAE from its own folder.

    Raises:
        ModelError: If it is missing or damaged.
        PolicyError: If the class is not allowed.
    """
    # Such VAEs overflow in float16, says their config.
    upcast = placement.dtype == "float16" and bool(
        read_config(folder / "config.json").get("force_upcast", True)
    )
    return KLAutoencoder(
        load_component(
            folder,
            expected=("AutoencoderKL",),
            variant=variant,
            placement=dataclasses.replace(placement, dtype="float32") if upcast else placement,
        )
    )


def check_same_latent_space(first: VAE, second: VAE) -> float:
    """Check that what one VAE encodes the other may decode, and return the cosine of a test card.

    Raises:
        ModelError: If downscale, channels or scaling factor differ, or the test card's latents do.
    """
    if first is second:
        return 1.0
    facts = [(vae.downscale, vae.channels, vae.scaling_factor) for vae in (first, second)]
    if facts[0] != facts[1]:
        raise ModelError(
            "the VAEs do not share a latent space: "
            + " against ".join(
                f"downscale {d}, {c} channels, scaling factor {s:g}" for d, c, s in facts
            )
            + "; name one explicitly with `vae:`"
        )
    card = card_frames(8 * first.downscale)
    one, other = (vae.encode_latents(card).flatten().cpu().double() for vae in (first, second))
    cosine = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    if cosine < MIN_COSINE:
        raise ModelError(
            f"the VAEs do not share a latent space: cosine {cosine:.4f} on a test card, "
            f"{MIN_COSINE} is needed; name one explicitly with `vae:`"
        )
    return cosine


def card_frames(size: int) -> torch.Tensor:
    """Return the test card, `(1, 3, size, size)`: ramps, bars and a disc."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    disc = torch.where(x**2 + y**2 < 0.4, -y, torch.sign(torch.sin(9 * x)))
    return torch.stack([x, y, disc])[None]
