"""Interpolate between latents, frame by frame.

F frames, C channels, h x w latent pixels. A frame's result depends on that frame alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import torch

Interpolation = Literal["linear", "slerp"]
Weight = float | torch.Tensor

# Below the first sin(t th)/sin(th) is t to the last bit of float32; above the second the great
# circle through both points is no longer determined by them.
SMALL_ANGLE: Final = 1e-4
OPPOSITE_ANGLE: Final = math.pi - 1e-3


def lerp(first: torch.Tensor, second: torch.Tensor, t: Weight) -> torch.Tensor:
    """Interpolate linearly: `(1 - t) first + t second`.

    Args:
        first: `(F, C, h, w)`.
        second: `(F, C, h, w)`.
        t: 0 gives `first`, 1 gives `second`, exactly; one number, or one for each frame `(F,)`.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(first, second)
    weight = _per_frame(t, first)
    return (1 - weight) * first + weight * second


def slerp(first: torch.Tensor, second: torch.Tensor, t: Weight) -> torch.Tensor:
    """Interpolate on the great circle through both latents of each frame.

    Args:
        first: `(F, C, h, w)`.
        second: `(F, C, h, w)`.
        t: 0 gives `first`, 1 gives `second`; one number, or one for each frame `(F,)`.

    Returns:
        `(F, C, h, w)`; linear where the angle vanishes or a frame is zero.

    Raises:
        ValueError: If the shapes differ, or a frame's latents point in opposite directions.

    Source: Shoemake, Animating rotation with quaternion curves, 1985.
    """
    _check_shapes(first, second)
    angle = torch.acos(cosine(first, second).double().clamp(-1, 1))
    opposite = torch.nonzero(angle > OPPOSITE_ANGLE).flatten().tolist()
    if opposite:
        raise ValueError(
            f"slerp is undefined between opposite latents (slots {opposite}); use linear"
        )
    angle = angle.view(-1, *[1] * (first.ndim - 1))
    weight = _per_frame(t, first).double()
    near = angle < SMALL_ANGLE
    sine = torch.where(near, 1.0, torch.sin(angle))
    one = torch.where(near, 1 - weight, torch.sin((1 - weight) * angle) / sine)
    two = torch.where(near, weight, torch.sin(weight * angle) / sine)
    return one.to(first.dtype) * first + two.to(first.dtype) * second


def mix(
    first: torch.Tensor,
    second: torch.Tensor,
    ratio: Weight,
    *,
    interpolation: Interpolation = "linear",
    variance_preserving: bool = False,
) -> torch.Tensor:
    """Mix two inversions of the same frames once: `r first + (1 - r) second`.

    Args:
        first: The image model's latents, `(F, C, h, w)`.
        second: The video model's latents, `(F, C, h, w)`.
        ratio: Weight of `first`, 0 to 1; one number, or one for each frame `(F,)`.
        interpolation: How latents are mixed; slerp keeps their norm by itself.
        variance_preserving: Divide a linear mix by the std that it has, from the measured correlation.

    Raises:
        ValueError: If a ratio is outside 0..1, the shapes differ, or slerp is undefined.

    Source: BIVDiff (2312.02813), mixed inversion.
    """
    ratios = torch.as_tensor(ratio)
    if not bool(((ratios >= 0) & (ratios <= 1)).all()):
        raise ValueError(f"ratio {ratios.tolist()} is not within 0..1")
    if interpolation == "slerp":
        return slerp(first, second, 1 - ratio)
    mixed = lerp(first, second, 1 - ratio)
    return (
        mixed / mixed_spread([first, second], [ratio, 1 - ratio]) if variance_preserving else mixed
    )


def mixed_spread(states: Sequence[torch.Tensor], weights: Sequence[Weight]) -> torch.Tensor:
    """Return the std of a weighted sum of unit-variance latents: `sqrt(sum_ij w_i w_j rho_ij)`.

    Two sources: `sqrt(a^2 + (1-a)^2 + 2 a (1-a) rho)`, 0.71 for uncorrelated ones at a = 0.5.

    Args:
        states: S tensors `(F, C, h, w)`.
        weights: One for each; a number, or one for each frame `(F,)`.

    Returns:
        `(F, 1, 1, 1)`, from the correlation measured in each frame.
    """
    total = torch.zeros(len(states[0]), dtype=torch.float64, device=states[0].device)
    for i, one in enumerate(states):
        for j, other in enumerate(states):
            rho = 1.0 if i == j else _correlation(one, other).double()
            total = total + weights[i] * weights[j] * rho
    spread = total.clamp(min=1e-8).sqrt().to(states[0].dtype)
    return spread.view(-1, *[1] * (states[0].ndim - 1))


def cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of two latents, a frame at a time, `(F,)`; 1 for zeros."""
    one, other = first.flatten(1).double(), second.flatten(1).double()
    norms = one.norm(dim=1) * other.norm(dim=1)
    dots = (one * other).sum(1)
    return torch.where(norms > 0, dots / norms.clamp(min=1e-300), 1.0).to(first.dtype)


def _correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    one, other = first.flatten(1), second.flatten(1)
    return cosine(one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True))


def _per_frame(t: Weight, like: torch.Tensor) -> torch.Tensor:
    weight = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    return weight.view(-1, *[1] * (like.ndim - 1)) if weight.ndim else weight


def _check_shapes(first: torch.Tensor, second: torch.Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(f"cannot interpolate {tuple(first.shape)} and {tuple(second.shape)}")
