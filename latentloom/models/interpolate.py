"""The interpolator: a video model that is told two neighbouring frames, and fills in three between them.

F = 5 frames of a span, C channels, h x w latent pixels.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import torch

from latentloom.models.denoisers import joined_condition
from latentloom.models.video import VideoDenoiser

FACTOR: Final = 4
"""Frames after interpolation to one before it."""
SPAN: Final = FACTOR + 1
"""Frames from one known frame to the next, both counted."""


def condition(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return what the model reads beside its latents: the mask m, 1 where a frame is known, and `m z`.

    Args:
        first: The known frame at the start of the span, `(C, h, w)`.
        last: The one at its end.

    Returns:
        `(5, 1 + C, h, w)`.

    Source: Video LDM (2304.08818), section 3.2; the mask comes first, as in PIA (2312.13964).
    """
    known = first.new_zeros(SPAN, 1 + len(first), *first.shape[1:])
    known[[0, -1], 0] = 1
    known[0, 1:], known[-1, 1:] = first, last
    return known


@dataclasses.dataclass(frozen=True, eq=False)
class InterpolateDenoiser(VideoDenoiser):
    """A `UNetMotionModel` that reads a condition beside its latents, one span a call."""

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise in a span, the known frames included; see `Denoiser.predict`.

        Raises:
            ModelError: If the condition does not fit the latents.
        """
        both = joined_condition(self, latents, control)
        with torch.inference_mode():
            output = self.run(both, timestep, text)
        return self.prediction.epsilon(output, latents, timestep)
