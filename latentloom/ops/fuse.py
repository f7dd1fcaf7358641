"""Fuse several denoisers while they denoise (FLDM).

F frames, C channels, h x w latent pixels; N steps, S sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from latentloom.ops.interpolate import cosine, mixed_spread, slerp
from latentloom.ops.sampling import Predict, Schedule, to_epsilon, to_sample

AlphaSchedule = Literal["constant", "toward_video", "toward_image"]
Space = Literal["x", "eps", "x0"]
Weights = Sequence[Sequence[float] | None]
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
    reference: int = 0,
) -> torch.Tensor:
    """Fuse the latents of several sources at the same timestep.

    Args:
        states: S tensors `(F, C, h, w)`.
        weights: One for each, on the simplex.
        interpolation: `slerp` is for two sources.
        variance_preserving: Divide by the spread that the sum has, from the measured correlation. A
            plain mix of weakly correlated latents has too little noise for its timestep.
        match_statistics: `per_frame` first brings each source to the mean and std of the reference, in
            every frame and channel.
        reference: Which source that is; the video model's.

    Raises:
        ValueError: If counts or shapes differ, or slerp is asked of other than two sources.
    """
    if len(states) != len(weights) or len({state.shape for state in states}) != 1:
        shapes = [tuple(state.shape) for state in states]
        raise ValueError(f"cannot fuse shapes {shapes} with {len(weights)} weights")
    if match_statistics == "per_frame":
        wanted = states[reference]
        states = [state if state is wanted else _matched(state, wanted) for state in states]
    if interpolation == "slerp":
        if len(states) != 2:
            raise ValueError(f"slerp fuses 2 sources, not {len(states)}; use linear")
        return slerp(states[0], states[1], weights[1])
    fused = torch.stack([w * state for w, state in zip(weights, states, strict=True)]).sum(0)
    return fused / mixed_spread(states, weights) if variance_preserving else fused


def fuse_denoise(
    sources: Sequence[Predict],
    states: Sequence[torch.Tensor],
    weights: Weights,
    schedule: Schedule,
    *,
    space: Space = "x",
    start: int = 0,
    stop: int | None = None,
    combine: Fuse = fuse,
    on_parts: OnStates | None = None,
    on_step: OnStates | None = None,
) -> torch.Tensor:
    """Denoise with several models that agree from step tau on.

    Before tau each source steps on latents of its own. From tau on:

    - in space `x`, each source takes its own step, and what is mixed are the latents of the next
      timestep; every source goes on from the mix;
    - in spaces `eps` and `x0` the sources have one latent already before the step: at tau their states
      are mixed once, by the same rule; then each predicts at that latent, the predicted noise or the
      predicted clean latents are mixed, and one step is taken with the mix.

    A DDIM step is linear in the prediction. So with linear mixing the three spaces differ at step tau
    only, and only if the sources' states do; slerp and `match_statistics` tell them apart.

    Args:
        sources: S predictions `(z, timestep) -> eps`, guidance included.
        states: S tensors `(F, C, h, w)` at step `start`.
        weights: N entries: the sources' weights, or None before tau; see `weight_schedule`.
        schedule: The sampler that the sources share.
        space: What is mixed.
        start: First step to take.
        stop: Step to end before; default N. What the sources then are `on_step` says.
        combine: `fuse`, or `functools.partial` of it with options.
        on_parts: Called with `(i, parts)` at each step: the S tensors that are mixed, or, before tau, the
            sources' own latents.
        on_step: Called with `(i, states)` after each step; passing those states and `start=i + 1`
            resumes there. From tau on the S states are one tensor.

    Returns:
        `(F, C, h, w)`.

    Raises:
        ValueError: If the counts differ, or the last step fuses nothing.

    Source: FLDM (2310.16400), algorithm 1; it fuses in space x.
    """
    if len(sources) != len(states):
        raise ValueError(f"{len(sources)} sources but {len(states)} states")
    if len(weights) != schedule.num_steps or weights[-1] is None:
        raise ValueError("the last step must fuse: tau has to be below the number of steps")
    tau = next(i for i, row in enumerate(weights) if row is not None)
    current = list(states)
    for i in range(start, schedule.num_steps if stop is None else stop):
        row, timestep = weights[i], schedule.timesteps[i]
        if row is not None and space != "x":
            z = combine(current, row) if i == tau else current[0]
            parts = [_in_space(predict(z, timestep), z, i, schedule, space) for predict in sources]
            eps = _as_epsilon(combine(parts, row), z, i, schedule, space)
            current = [schedule.step(eps, i, z)] * len(sources)
        else:
            pairs = zip(sources, current, strict=True)
            parts = [schedule.step(predict(z, timestep), i, z) for predict, z in pairs]
            current = parts if row is None else [combine(parts, row)] * len(sources)
        if on_parts is not None:
            on_parts(i, parts)
        if on_step is not None:
            on_step(i, current)
    return current[0]


def similarity(parts: Sequence[torch.Tensor], reference: int) -> torch.Tensor:
    """Return how far each source points where the reference does: whether their latents can be mixed.

    Args:
        parts: S tensors `(F, C, h, w)`.
        reference: The source that the others are compared with.

    Returns:
        Cosines `(S - 1, F)`, of the other sources in order.
    """
    others = [part for index, part in enumerate(parts) if index != reference]
    return torch.stack([cosine(part, parts[reference]) for part in others])


def _in_space(
    eps: torch.Tensor, z: torch.Tensor, i: int, schedule: Schedule, space: Space
) -> torch.Tensor:
    return eps if space == "eps" else to_sample(eps, z, schedule.alpha_bar(i))


def _as_epsilon(
    mixed: torch.Tensor, z: torch.Tensor, i: int, schedule: Schedule, space: Space
) -> torch.Tensor:
    return mixed if space == "eps" else to_epsilon(mixed, z, schedule.alpha_bar(i), "sample")


def _matched(state: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Bring each frame and channel of `state` to the mean and std of `reference`."""
    mean, std = state.mean((-2, -1), keepdim=True), state.std((-2, -1), keepdim=True)
    wanted_mean = reference.mean((-2, -1), keepdim=True)
    wanted_std = reference.std((-2, -1), keepdim=True)
    return (state - mean) / std.clamp(min=1e-6) * wanted_std + wanted_mean
