"""What denoisers share: those that run a UNet, and those around another denoiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

from latentloom.errors import ModelError
from latentloom.models.offload import execution_device
from latentloom.models.protocols import Denoiser
from latentloom.ops.sampling import PredictionType, to_epsilon

DenoiserT = TypeVar("DenoiserT", bound=Denoiser)


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a model's output means: its type, and abar of every training timestep."""

    type: PredictionType
    alphas_cumprod: torch.Tensor

    def epsilon(self, output: torch.Tensor, latents: torch.Tensor, timestep: int) -> torch.Tensor:
        """Return the noise, in float32, that an output implies at the timestep that was asked.

        In inversion that is the timestep a step goes to. diffusers' inverse scheduler converts at the
        one it comes from, which lets the clean latents leak into the noise: 0.3 to 0.7 dB less after
        40 steps there and back, and inverted latents further from unit variance.
        """
        alpha_bar = float(self.alphas_cumprod[timestep])
        return to_epsilon(output.float().contiguous(), latents, alpha_bar, self.type)


@dataclasses.dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """A UNet of diffusers, frame by frame unless a subclass says otherwise."""

    module: Any
    prediction: Prediction

    @property
    def windowed(self) -> bool:
        """Frames do not see each other."""
        return False

    @property
    def sample_length(self) -> int:
        """One frame."""
        return 1

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.module.config.out_channels)

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return execution_device(self.module)


def joined_condition(
    denoiser: UNetDenoiser, latents: torch.Tensor, control: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Return latents with the condition beside them, as many channels as the UNet takes.

    Raises:
        ModelError: If there is no condition, or it does not fit the latents.
    """
    extra = int(denoiser.module.config.in_channels) - denoiser.channels
    expected = (len(latents), extra, *latents.shape[2:])
    if [part.shape for part in control] != [expected]:
        given = ", ".join(f"shape {tuple(part.shape)}" for part in control) or "none"
        raise ModelError(f"this model needs a condition of shape {expected}; got {given}")
    return torch.cat([latents, control[0].to(latents.device)], dim=1)


@dataclasses.dataclass(frozen=True, eq=False)
class DenoiserAround(Generic[DenoiserT]):
    """A denoiser that changes what another one is given, and is like it in all else."""

    denoiser: DenoiserT

    @property
    def windowed(self) -> bool:
        """As the other."""
        return self.denoiser.windowed

    @property
    def sample_length(self) -> int:
        """As the other."""
        return self.denoiser.sample_length

    @property
    def channels(self) -> int:
        """As the other."""
        return self.denoiser.channels

    @property
    def device(self) -> torch.device:
        """As the other."""
        return self.denoiser.device
