"""ControlNet: residuals for an image or a motion denoiser, from a condition of each frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import DenoiserAround
from latentloom.models.fits import controlnet_fault
from latentloom.models.image import ImageDenoiser, Residuals, Steerable, per_frame
from latentloom.models.protocols import Denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class ControlNet:
    """`ControlNetModel`, checked against the UNet that it was made for."""

    module: Any

    @property
    def condition_channels(self) -> int:
        """Channels of the condition: 1 for edges, 3 for a picture."""
        return int(self.module.config.conditioning_channels)

    @torch.inference_mode()
    def residuals(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        condition: torch.Tensor,
        scale: float,
    ) -> Residuals:
        """Return what the ControlNet adds to the UNet.

        Args:
            latents: `(F, C, h, w)`.
            timestep: The UNet's timestep.
            text: `(1, L, D)` or `(F, L, D)`.
            condition: `(F, condition_channels, H, W)` in [0, 1], at the frames' own size; one channel
                is repeated for all, since the ControlNets of Stable Diffusion read edges as a picture.
            scale: Strength of the condition; 0 removes it, 1 is as trained.

        Raises:
            ModelError: If the condition has another number of channels or frames.
        """
        if condition.shape[1] == 1:
            condition = condition.expand(-1, self.condition_channels, -1, -1)
        if condition.shape[:2] != (len(latents), self.condition_channels):
            raise ModelError(
                f"the ControlNet takes {self.condition_channels} channels for each of "
                f"{len(latents)} frames, not a condition of shape {tuple(condition.shape)}"
            )
        dtype = self.module.dtype
        down, middle = self.module(
            latents.contiguous().to(dtype),
            timestep,
            per_frame(text, len(latents)).to(dtype),
            controlnet_cond=condition.contiguous().to(latents.device, dtype),
            conditioning_scale=scale,
            return_dict=False,
        )
        return Residuals(down, middle)


@dataclasses.dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet in use."""

    control_net: ControlNet
    scale: float = 1.0
    """Factor of its residuals."""
    timesteps: frozenset[int] | None = None
    """Timesteps at which it acts; all by default."""

    def acts_at(self, timestep: int) -> bool:
        """Tell whether it adds anything at a timestep."""
        return self.timesteps is None or timestep in self.timesteps


@dataclasses.dataclass(frozen=True, eq=False)
class ControlledDenoiser(DenoiserAround[Steerable]):
    """A denoiser steered by ControlNets.

    Its `control` are their conditions, one each, in order, and then what the denoiser takes itself.
    """

    controls: tuple[Control, ...]

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise under the conditions `control`; see `Denoiser.predict`.

        Raises:
            ModelError: If conditions are missing, or one does not fit.
        """
        if len(control) < len(self.controls):
            raise ModelError(
                f"{len(self.controls)} ControlNet(s) were given {len(control)} conditions;"
                " each needs one"
            )
        residuals = [
            use.control_net.residuals(latents, timestep, text, condition, use.scale)
            for use, condition in zip(self.controls, control, strict=False)
            if use.acts_at(timestep)
        ]
        own = control[len(self.controls) :]
        return self.denoiser.predict_steered(latents, timestep, text, _added_up(residuals), *own)


def with_control(
    denoiser: Denoiser, control_net: ControlNet, *, scale: float = 1.0
) -> ControlledDenoiser:
    """Attach one ControlNet, at all timesteps; see `with_controls`."""
    return with_controls(denoiser, [Control(control_net, scale)])


def with_controls(denoiser: Denoiser, controls: Sequence[Control]) -> ControlledDenoiser:
    """Attach ControlNets to a denoiser; their residuals are added up.

    Raises:
        ModelError: If the denoiser takes no residuals.
    """
    if not hasattr(denoiser, "predict_steered"):
        raise ModelError(f"{type(denoiser).__name__} cannot be steered by a ControlNet")
    steerable: Any = denoiser
    return ControlledDenoiser(steerable, tuple(controls))


def _added_up(residuals: Sequence[Residuals]) -> Residuals | None:
    if not residuals:
        return None
    down = [sum(parts[1:], parts[0]) for parts in zip(*(r.down for r in residuals), strict=True)]
    middle = [r.middle for r in residuals if r.middle is not None]
    return Residuals(down, sum(middle[1:], middle[0]))


def check_fits(control_net: ControlNet, base: ImageDenoiser) -> None:
    """Check that residuals have the shapes of the UNet's skip connections.

    Raises:
        ModelError: If they do not; it prints both.
    """
    fault = controlnet_fault(control_net.module.config, base.module.config)
    if fault is not None:
        raise ModelError(fault)
