"""The image denoiser: `UNet2DConditionModel`, frame by frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from latentloom.errors import ModelError
from latentloom.models.protocols import Denoiser
from latentloom.ops.sampling import PredictionType, to_epsilon


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What a ControlNet adds to a UNet: `(F, c, h, w)` for each skip connection and the middle."""

    down: Sequence[torch.Tensor]
    middle: torch.Tensor


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


class Steerable(Denoiser, Protocol):
    """A denoiser that takes a ControlNet's residuals."""

    def predict_steered(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        residuals: Residuals | None,
    ) -> torch.Tensor:
        """Predict the noise; see `Denoiser.predict`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDenoiser:
    """`UNet2DConditionModel`. A frame's result depends on that frame alone."""

    module: Any
    prediction: Prediction

    windowed = False
    sample_length = 1

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.module.config.in_channels)

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return torch.device(self.module.device)

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in frames; see `Denoiser.predict`."""
        refuse_control(control)
        return self.predict_steered(latents, timestep, text, None)

    @torch.inference_mode()
    def predict_steered(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        residuals: Residuals | None,
    ) -> torch.Tensor:
        """Predict the noise in frames, with a ControlNet's residuals."""
        dtype = self.module.dtype
        output = self.module(
            latents.contiguous().to(dtype),
            timestep,
            per_frame(text, len(latents)).to(dtype),
            return_dict=False,
            **residual_arguments(residuals, dtype),
        )[0]
        return self.prediction.epsilon(output, latents, timestep)


def per_frame(text: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Give every frame a text: `(1, L, D)` or `(F, L, D)` becomes `(F, L, D)`."""
    return text.expand(num_frames, -1, -1).contiguous()


def refuse_control(control: Sequence[torch.Tensor]) -> None:
    """Refuse a condition where no ControlNet would read it.

    Raises:
        ModelError: If there is one.
    """
    if control:
        raise ModelError("a control was given to a model without a ControlNet")


def residual_arguments(residuals: Residuals | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return a UNet's keyword arguments for a ControlNet's residuals."""
    if residuals is None:
        return {}
    return {
        "down_block_additional_residuals": tuple(part.to(dtype) for part in residuals.down),
        "mid_block_additional_residual": residuals.middle.to(dtype),
    }
