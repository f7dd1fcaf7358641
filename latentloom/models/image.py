"""The image denoiser: `UNet2DConditionModel`, frame by frame."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import UNetDenoiser
from latentloom.models.protocols import Denoiser


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What ControlNets and T2I-Adapters add to a UNet, each part `(F, c, h, w)`."""

    down: Sequence[torch.Tensor] = ()
    """For each skip connection, by ControlNets."""
    middle: torch.Tensor | None = None
    """For the middle block, by ControlNets."""
    intrablock: Sequence[torch.Tensor] = ()
    """For each level of the encoder, by T2I-Adapters."""


class Steerable(Denoiser, Protocol):
    """A denoiser that takes a ControlNet's residuals."""

    def predict_steered(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        residuals: Residuals | None,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise; `control` is what the denoiser takes itself, see `Denoiser.predict`."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageDenoiser(UNetDenoiser):
    """`UNet2DConditionModel`. A frame's result depends on that frame alone."""

    reads_reference: bool = False
    """Whether its attention reads tokens of a reference image, `(F, n, D)`, the last of its control."""

    @property
    def extra_channels(self) -> int:
        """Channels that are read beside the latents: 5 by inpainting models, else mostly 0."""
        return int(self.module.config.in_channels) - self.channels

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in frames; see `Denoiser.predict`.

        Raises:
            ModelError: If `control` is not what it reads beside the latents.
        """
        return self.predict_steered(latents, timestep, text, None, *control)

    @torch.inference_mode()
    def predict_steered(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        residuals: Residuals | None,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in frames, with what conditions add to it."""
        dtype = self.module.dtype
        arguments = residual_arguments(residuals, dtype)
        if self.reads_reference:
            control, tokens = control[:-1], control[-1]
            arguments["added_cond_kwargs"] = {"image_embeds": [tokens.contiguous().to(dtype)]}
        output = self.module(
            self._with_extra(latents, control).contiguous().to(dtype),
            timestep,
            per_frame(text, len(latents)).to(dtype),
            return_dict=False,
            **arguments,
        )[0]
        return self.prediction.epsilon(output, latents, timestep)

    def _with_extra(self, latents: torch.Tensor, control: Sequence[torch.Tensor]) -> torch.Tensor:
        if not self.extra_channels:
            refuse_control(control)
            return latents
        wanted = (len(latents), self.extra_channels, *latents.shape[2:])
        if [tuple(part.shape) for part in control] != [wanted]:
            given = ", ".join(str(tuple(part.shape)) for part in control) or "nothing"
            raise ModelError(f"the model reads {wanted} beside its latents, but was given {given}")
        return torch.cat([latents, control[0].to(latents.device)], dim=1)


def per_frame(text: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Give every frame a text: `(1, L, D)` or `(F, L, D)` becomes `(F, L, D)`."""
    return text.expand(num_frames, -1, -1).contiguous()


def twin_of(module: Any) -> Any:
    """Copy a module's structure; the copy has the same parameters and buffers, not copies of them."""
    shared = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})


def refuse_control(control: Sequence[torch.Tensor]) -> None:
    """Refuse a condition where no ControlNet would read it.

    Raises:
        ModelError: If there is one.
    """
    if control:
        raise ModelError("a control was given to a model without a ControlNet")


def residual_arguments(residuals: Residuals | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return a UNet's keyword arguments for residuals."""
    arguments: dict[str, Any] = {}
    if residuals is not None and residuals.middle is not None:
        arguments["down_block_additional_residuals"] = tuple(p.to(dtype) for p in residuals.down)
        arguments["mid_block_additional_residual"] = residuals.middle.to(dtype)
    if residuals is not None and residuals.intrablock:
        # A list of our own: the UNet empties it.
        arguments["down_intrablock_additional_residuals"] = [
            part.to(dtype) for part in residuals.intrablock
        ]
    return arguments
