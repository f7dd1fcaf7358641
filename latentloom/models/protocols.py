"""What a stage may ask of a model, whatever family it is of.

F frames, H x W pixels, C latent channels, h x w latent pixels, L text tokens of D numbers.
Tensors go in and come out as float32, contiguous, on the model's device; inside, a model has a
dtype of its own. Adapters keep to that: another memory layout gives other last bits.
"""

from __future__ import annotations

from typing import Protocol

import torch


class VAE(Protocol):
    """Between pixels and latents, frame by frame."""

    def __hash__(self) -> int:
        """Loaded models are keys of caches."""

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent pixel."""

    @property
    def channels(self) -> int:
        """C."""

    @property
    def scaling_factor(self) -> float:
        """The config's factor; two VAEs that share latents have the same."""

    @property
    def device(self) -> torch.device:
        """Where tensors go."""

    def encode_latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames `(F, 3, H, W)` in [-1, 1] as `(F, C, h, w)`, scaled for denoisers."""

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents to frames `(F, 3, H, W)` in [-1, 1]."""


class TextEncoder(Protocol):
    """From prompts to embeddings."""

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Return `(len(prompts), L, D)`; a prompt's embedding does not depend on the others."""

    def dropped(self, prompt: str) -> str:
        """Return the end of a prompt that the context has no room for; mostly empty."""


class Denoiser(Protocol):
    """Predicts the noise in latents."""

    @property
    def windowed(self) -> bool:
        """Whether frames see each other: then a call is one window, else one micro-batch."""

    @property
    def channels(self) -> int:
        """C of the latents it denoises."""

    @property
    def sample_length(self) -> int:
        """The longest window that it takes, 0 where there is no limit; 1 if it is not windowed."""

    @property
    def device(self) -> torch.device:
        """Where tensors go."""

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise, whatever the model was trained to predict.

        Args:
            latents: `(F, C, h, w)`.
            timestep: 0 to the schedule's training steps, exclusive.
            text: `(1, L, D)`, or `(F, L, D)` with a text for each frame.
            control: The conditions of a controlled denoiser, each `(F, channels, H, W)`.

        Returns:
            eps `(F, C, h, w)`.
        """
