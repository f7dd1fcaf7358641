"""The interpolator: a video model that is told two neighbouring frames, and corrects their cross-fade.

F = 5 frames of a span, C channels, h x w latent pixels. No noise is drawn: the way to the frames begins at
the cross-fade, and a model that was not trained leaves it as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch

from latentloom.models.image import ImageDenoiser, per_frame
from latentloom.models.protocols import TextEncoder
from latentloom.ops.interpolate import lerp

FACTOR: Final = 4
"""Frames after interpolation to one before it."""
SPAN: Final = FACTOR + 1
"""Frames from one known frame to the next, both counted."""
LAST_TIMESTEP: Final = 100
"""What the UNets are told at the cross-fade; low, since nothing in it is noise. 0 at the end."""


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


def cross_fade(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Return the span `(5, C, h, w)` that goes in a straight line from one frame to the other."""
    places = torch.linspace(0, 1, SPAN, device=first.device)
    return lerp(first.expand(SPAN, -1, -1, -1), last.expand(SPAN, -1, -1, -1), places)


@dataclasses.dataclass(frozen=True, eq=False)
class Interpolator:
    """An image UNet, and the same one with temporal layers that also reads what is known."""

    module: Any
    """`UNetMotionModel` of `2 C + 1` input channels."""
    image: ImageDenoiser
    text: TextEncoder

    def between(
        self, first: torch.Tensor, last: torch.Tensor, text: torch.Tensor, num_steps: int
    ) -> torch.Tensor:
        """Return the three frames between two, `(3, C, h, w)`.

        From the cross-fade (s = 1) to the frames (s = 0) in N steps of Euler: `z <- z + d(z, s) / N`.

        Args:
            first: `(C, h, w)`.
            last: `(C, h, w)`.
            text: `(1, L, D)`.
            num_steps: N.

        Source: Stochastic interpolants with data-dependent couplings (2310.03725).
        """
        known, z = condition(first, last), cross_fade(first, last)
        for step in range(num_steps):
            z = z + self.direction(z, 1 - step / num_steps, text, known) / num_steps
        return z[1:-1]

    @torch.inference_mode()
    def direction(
        self, z: torch.Tensor, s: float, text: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """Predict how the frames differ from the cross-fade, at s of the way back to it.

        That is what temporal layers and condition change in the image model's prediction: before they were
        trained nothing, in whatever checkpoint of the image model.

        Args:
            z: `(F, C, h, w)`.
            s: 1 at the cross-fade, 0 at the frames.
            text: `(1, L, D)`.
            known: What `condition` returned.
        """
        dtype = self.module.dtype
        words, time = per_frame(text, len(z)).to(dtype), round(s * LAST_TIMESTEP)
        window = torch.cat([z, known], dim=1).to(dtype).transpose(0, 1)[None].contiguous()
        together = self.module(window, time, words, return_dict=False)[0][0].transpose(0, 1)
        alone = self.image.module(z.to(dtype), time, words, return_dict=False)[0]
        changed: torch.Tensor = together.float() - alone.float()
        return changed.contiguous()
