"""Fuse several denoisers while they denoise (FLDM).

F frames, C channels, h x w latent pixels; N steps, S sources. Source 0 is the video model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from latentloom.ops.interpolate import mixed_spread, slerp
from latentloom.ops.sampling import Step

AlphaSchedule = Literal["constant", "toward_video", "toward_image"]
Fuse = Callable[[Sequence[torch.Tensor], Sequence[float]], torch.Tensor]
OnStates = Callable[[int, list[torch.Tensor]], None]


def alpha_schedule(
    alpha: float, tau: int, num_steps: int, schedule: AlphaSchedule = "toward_video"
) -> list[float | None]:
    """Return the video latents' weight at each step, None where nothing is fused yet.

    Args:
        alpha: Weight at the first fused step, 0 (image model only) to 1 (video model only).
        tau: First fused step, 0 to N - 1.
        num_steps: N.
        schedule: Whether the weight stays, grows to 1, or falls to 0, linearly over the steps left.

    Raises:
        ValueError: If alpha is outside 0..1 or tau outside 0..N-1.

    Example:
        >>> [round(a, 2) for a in alpha_schedule(0.7, 4, 10) if a is not None]
        [0.7, 0.75, 0.8, 0.85, 0.9, 0.95]

    Source: FLDM (2310.16400), section 3.3.
    """
    toward = {"constant": None, "toward_video": 0, "toward_image": 1}[schedule]
    weights = weight_schedule([alpha, 1 - alpha], tau, num_steps, toward=toward)
    return [None if pair is None else pair[0] for pair in weights]


def weight_schedule(
    weights: Sequence[float], tau: int, num_steps: int, *, toward: int | None = None
) -> list[tuple[float, ...] | None]:
    """Return the weights of any number of sources at each step, None where nothing is fused yet.

    Args:
        weights: Weights at the first fused step: each at least 0, together 1.
        tau: First fused step, 0 to N - 1.
        num_steps: N.
        toward: The source that all weight moves to, linearly over the steps left; None keeps them.

    Raises:
        ValueError: If the weights are not on the simplex, or tau is outside 0..N-1.
    """
    if not weights or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights {list(weights)} must be 0 or more and sum to 1")
    if not 0 <= tau < num_steps:
        raise ValueError(f"tau {tau} is not within 0..{num_steps - 1}: nothing would be fused")
    goal = weights if toward is None else [float(s == toward) for s in range(len(weights))]
    fused = [
        tuple(w + k * (g - w) / (num_steps - tau) for w, g in zip(weights, goal, strict=True))
        for k in range(num_steps - tau)
    ]
    return [None] * tau + fused


def fuse(
    states: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    interpolation: Literal["linear", "slerp"] = "linear",
    variance_preserving: bool = False,
    match_statistics: Literal["none", "per_frame"] = "none",
) -> torch.Tensor:
    """Fuse the latents of several sources at the same timestep.

    Args:
        states: S tensors `(F, C, h, w)`.
        weights: One for each, on the simplex.
        interpolation: `slerp` is for two sources.
        variance_preserving: Divide by the spread that the sum has, from the measured correlation. A
            plain mix of weakly correlated latents has too little noise for its timestep.
        match_statistics: `per_frame` first brings each source to the first one's mean and std, in
            every frame and channel.

    Raises:
        ValueError: If counts or shapes differ, or slerp is asked of other than two sources.
    """
    if len(states) != len(weights) or len({state.shape for state in states}) != 1:
        shapes = [tuple(state.shape) for state in states]
        raise ValueError(f"cannot fuse shapes {shapes} with {len(weights)} weights")
    if match_statistics == "per_frame":
        states = [states[0], *(_matched(state, states[0]) for state in states[1:])]
    if interpolation == "slerp":
        if len(states) != 2:
            raise ValueError(f"slerp fuses 2 sources, not {len(states)}; use linear")
        return slerp(states[0], states[1], weights[1])
    fused = torch.stack([w * state for w, state in zip(weights, states, strict=True)]).sum(0)
    return fused / mixed_spread(list(states), list(weights)) if variance_preserving else fused


def fuse_denoise(
    sources: Sequence[Step],
    states: Sequence[torch.Tensor],
    schedule: Sequence[Sequence[float] | None],
    *,
    start: int = 0,
    combine: Fuse = fuse,
    on_step: OnStates | None = None,
) -> torch.Tensor:
    """Denoise with several models that agree from step tau on.

    Each source takes its own step; fusion comes after it, on the latents of the next timestep, and
    every source goes on from the fused ones.

    Args:
        sources: S functions `(z, i) -> z`, guidance included; see `sampling.ddim_step`.
        states: S tensors `(F, C, h, w)` at step `start`.
        schedule: N entries: the sources' weights, or None before tau; see `weight_schedule`.
        start: First step to take.
        combine: `fuse`, or `functools.partial` of it with options.
        on_step: Called with `(i, states)` after each step; passing those states and `start=i + 1`
            resumes there.

    Returns:
        `(F, C, h, w)`.

    Raises:
        ValueError: If the counts differ, or the last step fuses nothing.

    Source: FLDM (2310.16400), algorithm 1.
    """
    if len(sources) != len(states):
        raise ValueError(f"{len(sources)} sources but {len(states)} states")
    if not schedule or schedule[-1] is None:
        raise ValueError("the last step must fuse: tau has to be below the number of steps")
    current = list(states)
    for i in range(start, len(schedule)):
        current = [step(z, i) for step, z in zip(sources, current, strict=True)]
        weights = schedule[i]
        if weights is not None:
            current = [combine(current, weights)] * len(sources)
        if on_step is not None:
            on_step(i, current)
    return current[0]


def _matched(state: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Bring each frame and channel of `state` to the mean and std of `reference`."""
    mean, std = state.mean((-2, -1), keepdim=True), state.std((-2, -1), keepdim=True)
    wanted_mean = reference.mean((-2, -1), keepdim=True)
    wanted_std = reference.std((-2, -1), keepdim=True)
    return (state - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean
