"""Video denoisers: `UNetMotionModel` and `UNet3DConditionModel`, one window a call."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from latentloom.errors import ModelError
from latentloom.models.image import (
    Prediction,
    Residuals,
    per_frame,
    refuse_control,
    residual_arguments,
)


@dataclasses.dataclass(frozen=True, eq=False)
class VideoDenoiser:
    """Either UNet; they differ in how they take the text."""

    module: Any
    prediction: Prediction

    windowed = True

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.module.config.in_channels)

    @property
    def sample_length(self) -> int:
        """The longest window: of a motion model its positions, of a 3D UNet any (0)."""
        return int(self.module.config.get("motion_max_seq_length") or 0)

    @property
    def device(self) -> torch.device:
        """Where tensors go."""
        return torch.device(self.module.device)

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        control: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise in a window; see `Denoiser.predict`.

        Raises:
            ModelError: If the window is too long, or a 3D UNet is given several texts.
        """
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
        """Predict the noise in a window, with a ControlNet's residuals."""
        num_frames = len(latents)
        if self.sample_length and num_frames > self.sample_length:
            raise ModelError(
                f"a window of {num_frames} frames is longer than the video model's "
                f"{self.sample_length}; lower windows.size"
            )
        dtype = self.module.dtype
        output = self.module(
            latents.to(dtype).transpose(0, 1)[None].contiguous(),
            timestep,
            self._text(text, num_frames).to(dtype),
            return_dict=False,
            **residual_arguments(residuals, dtype),
        )[0]
        return self.prediction.epsilon(output[0].transpose(0, 1), latents, timestep)

    def _text(self, text: torch.Tensor, num_frames: int) -> torch.Tensor:
        if self.module.config.get("_class_name") != "UNet3DConditionModel":
            return per_frame(text, num_frames)
        if len(text) > 1 and not bool((text == text[:1]).all()):
            raise ModelError("this video model reads one prompt a window; several were given")
        # It repeats the text over the frames by itself.
        return text[:1]
