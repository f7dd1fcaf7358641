"""Video denoisers: `UNetMotionModel` and `UNet3DConditionModel`, one window a call."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import UNetDenoiser
from latentloom.models.image import (
    Residuals,
    per_frame,
    refuse_control,
    residual_arguments,
)
from latentloom.models.pretrained import library


@dataclasses.dataclass(frozen=True, eq=False)
class VideoDenoiser(UNetDenoiser):
    """Either UNet; they differ in how they take the text."""

    @property
    def windowed(self) -> bool:
        """Frames of a window see each other."""
        return True

    @property
    def sample_length(self) -> int:
        """The longest window: of a motion model its positions, of a 3D UNet any (0)."""
        return int(self.module.config.get("motion_max_seq_length") or 0)

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in a window; see `Denoiser.predict`.

        Raises:
            ModelError: If the window is too long, or a 3D UNet is given several texts.
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
        """Predict the noise in a window, with a ControlNet's residuals."""
        refuse_control(control)
        arguments = residual_arguments(residuals, self.module.dtype)
        output = self.run(latents, timestep, text, **arguments)
        return self.prediction.epsilon(output, latents, timestep)

    def run(
        self, latents: torch.Tensor, timestep: int, text: torch.Tensor, **arguments: Any
    ) -> torch.Tensor:
        """Call the UNet with one window.

        Args:
            latents: All its channels, `(F, in_channels, h, w)`.
            timestep: As `predict`'s.
            text: As `predict`'s.
            arguments: What else the UNet takes.

        Returns:
            What it predicts, `(F, C, h, w)`.

        Raises:
            ModelError: If the window is too long, or a 3D UNet is given several texts.
        """
        num_frames = len(latents)
        if self.sample_length and num_frames > self.sample_length:
            raise ModelError(
                f"a window of {num_frames} frames is longer than the video model's "
                f"{self.sample_length}; lower windows.size"
            )
        dtype = self.module.dtype
        output: torch.Tensor = self.module(
            latents.to(dtype).transpose(0, 1)[None].contiguous(),
            timestep,
            self._text(text, num_frames).to(dtype),
            return_dict=False,
            **arguments,
        )[0]
        return output[0].transpose(0, 1)

    def _text(self, text: torch.Tensor, num_frames: int) -> torch.Tensor:
        if self.module.config.get("_class_name") != "UNet3DConditionModel":
            return per_frame(text, num_frames)
        if len(text) > 1 and not bool((text == text[:1]).all()):
            raise ModelError("this video model reads one prompt a window; several were given")
        # It repeats the text over the frames by itself.
        return text[:1]


def inflate(unet: Any, adapter: Any) -> Any:
    """Put an adapter's temporal layers into a `UNet2DConditionModel`: a `UNetMotionModel`.

    Raises:
        ModelError: If the adapter was made for another UNet; it prints both shapes.

    Source: Video LDM (2304.08818), section 3.1; AnimateDiff (2307.04725).
    """
    # diffusers compares neither, and groups its temporal layers like the base in any case.
    ours, theirs = (
        {"block_out_channels": tuple(config["block_out_channels"]), "norm_num_groups": groups}
        for config, groups in (
            (adapter.config, adapter.config["motion_norm_num_groups"]),
            (unet.config, unet.config["norm_num_groups"]),
        )
    )
    if ours != theirs:
        raise ModelError(f"the motion adapter does not fit its base: {ours} against {theirs}")
    try:
        module = library("diffusers").UNetMotionModel.from_unet2d(unet, adapter)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the motion adapter does not fit its base: {error}") from error
    return module.eval().requires_grad_(False)
