"""Walk the diffusion ODE of DDIM, down to a clean latent and back up.

Plain loops over anything that can predict noise and anything that can take a step.
F frames, C channels, h x w latent pixels; N steps. Step 0 is the noisiest when denoising, and the
cleanest when inverting: inverse step k goes where step N - 1 - k came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch

# (z (F, C, h, w), timestep) -> eps (F, C, h, w), guidance and conditions included.
Predict = Callable[[torch.Tensor, int], torch.Tensor]
# (z, i) -> z after step i.
Step = Callable[[torch.Tensor, int], torch.Tensor]
OnStep = Callable[[int, torch.Tensor], None]
PredictionType = Literal["epsilon", "v_prediction", "sample"]


class Schedule(Protocol):
    """What the loops need of a sampler; `latentloom.models.schedulers.Sampler` is one."""

    @property
    def num_steps(self) -> int:
        """N."""

    @property
    def timesteps(self) -> tuple[int, ...]:
        """N timesteps, the noisiest first."""

    def alpha_bar(self, i: int) -> float:
        """Return abar, the part of the signal in the variance, at `timesteps[i]`."""

    def step(self, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        """Go from timestep `timesteps[i]` to the next cleaner one."""

    def inverse_step(self, eps: torch.Tensor, k: int, z: torch.Tensor) -> torch.Tensor:
        """Go to timestep `timesteps[N - 1 - k]` from the next cleaner one."""


def ddim_step(predict: Predict, schedule: Schedule) -> Step:
    """Return the function that takes one denoising step of a model: `(z, i) -> z`."""

    def step(z: torch.Tensor, i: int) -> torch.Tensor:
        return schedule.step(predict(z, schedule.timesteps[i]), i, z)

    return step


def denoise(
    z: torch.Tensor,
    predict: Predict,
    schedule: Schedule,
    *,
    start: int = 0,
    stop: int | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Denoise latents from step `start` on.

    Args:
        z: `(F, C, h, w)` at timestep `timesteps[start]`.
        predict: The model.
        schedule: Its sampler.
        start: First step to take, 0 to N; above 0 for a strength below 1 or a resumed chunk.
        stop: Step to end before; default N.
        on_step: Called with `(i, z)` after each step; `start=i + 1` goes on from there.

    Source: DDIM (2010.02502), equation 12 with sigma = 0.
    """
    step, num_steps = ddim_step(predict, schedule), schedule.num_steps
    last = _checked(num_steps if stop is None else stop, num_steps)
    for i in range(_checked(start, num_steps), last):
        z = step(z, i)
        if on_step is not None:
            on_step(i, z)
    return z


def invert(
    z: torch.Tensor,
    predict: Predict,
    schedule: Schedule,
    *,
    start: int = 0,
    stop: int | None = None,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Walk the ODE backwards, from clean latents to those that sample to them.

    Args:
        z: `(F, C, h, w)`; clean, or noised to step `start` where that is above 0.
        predict: The model, asked at the timestep that a step goes to.
        schedule: Its sampler.
        start: Inverse steps already behind `z`, 0 to N.
        stop: Inverse steps in all; default N. Denoising then begins at step `N - stop`.
        on_step: Called with `(k, z)` after each step; `start=k + 1` goes on from there.

    Source: DDIM (2010.02502), section 4.3.
    """
    num_steps = schedule.num_steps
    last = _checked(num_steps if stop is None else stop, num_steps)
    for k in range(_checked(start, num_steps), last):
        eps = predict(z, schedule.timesteps[num_steps - 1 - k])
        z = schedule.inverse_step(eps, k, z)
        if on_step is not None:
            on_step(k, z)
    return z


def guide(cond: torch.Tensor, uncond: torch.Tensor, guidance: float) -> torch.Tensor:
    """Combine two predictions: `eps_u + s (eps_c - eps_u)`.

    Source: Classifier-free diffusion guidance (2207.12598), equation 6 with s = 1 + w.
    """
    return uncond + guidance * (cond - uncond)


def active_timesteps(timesteps: Sequence[int], start: float, end: float) -> frozenset[int]:
    """Return the timesteps at which a condition holds, from one part of the steps to another.

    Args:
        timesteps: Those that are walked, the noisiest first.
        start: Part of the steps after which it begins, 0 to 1.
        end: Part of the steps after which it ends, 0 to 1.

    Source: diffusers' `control_guidance_start` and `control_guidance_end`.
    """
    total = len(timesteps)
    return frozenset(
        t for i, t in enumerate(timesteps) if i / total >= start and (i + 1) / total <= end
    )


def guide_twice(
    full: torch.Tensor,
    by_image: torch.Tensor,
    by_nothing: torch.Tensor,
    guidance: float,
    image_guidance: float,
) -> torch.Tensor:
    """Combine predictions under text and image, image alone, and neither.

    `eps_0 + s_T (eps_TI - eps_I) + s_I (eps_I - eps_0)`.

    Source: InstructPix2Pix (2211.09800), equation 3.
    """
    return by_nothing + guidance * (full - by_image) + image_guidance * (by_image - by_nothing)


def to_epsilon(
    output: torch.Tensor, z: torch.Tensor, alpha_bar: float, prediction_type: PredictionType
) -> torch.Tensor:
    """Convert a model's output at one timestep to the noise it implies.

    Args:
        output: What the model returned, `(F, C, h, w)`.
        z: What it was given.
        alpha_bar: `alphas_cumprod` of the timestep it was asked at, 0 to 1.
        prediction_type: What the model was trained to return.

    Source: Progressive distillation (2202.00512), appendix D: `v = a eps - s x0`, a = sqrt(abar)
        and s = sqrt(1 - abar).
    """
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return signal * output + noise * z
    return (z - signal * output) / noise


def to_sample(eps: torch.Tensor, z: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """Return the clean latents that a prediction implies: `x0 = (z - sqrt(1 - abar) eps) / sqrt(abar)`.

    `to_epsilon` with `sample` is the way back.

    Source: DDIM (2010.02502), equation 9.
    """
    return (z - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


def clean_estimate(
    before: torch.Tensor, after: torch.Tensor, alpha_bar: float, alpha_bar_after: float
) -> torch.Tensor:
    """Return the clean latents that a DDIM step implied, from the latents at both of its ends.

    A step without noise keeps `x0` and `eps` of its one prediction, so that
    `z = sqrt(abar) x0 + sqrt(1 - abar) eps` holds before and after it: two equations for two unknowns,
    and no call of the model.

    Args:
        before: `(F, C, h, w)` before the step.
        after: The same after it.
        alpha_bar: `alphas_cumprod` before the step.
        alpha_bar_after: `alphas_cumprod` after it; larger.

    Source: DDIM (2010.02502), equation 12 with sigma = 0.
    """
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    signal_after, noise_after = math.sqrt(alpha_bar_after), math.sqrt(1 - alpha_bar_after)
    return (noise * after - noise_after * before) / (noise * signal_after - noise_after * signal)


def _checked(index: int, num_steps: int) -> int:
    if not 0 <= index <= num_steps:
        raise ValueError(f"step {index} is not within 0..{num_steps}")
    return index
