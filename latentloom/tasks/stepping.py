"""Walk a chunk's denoising from its newest checkpoint on; save where it is due, stop where the run is to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from pydantic import JsonValue

from latentloom.models.schedulers import Sampler
from latentloom.ops.sampling import OnStep, Predict, clean_estimate, denoise
from latentloom.tasks.checkpoints import StepReached, StepState
from latentloom.tasks.chunk import OpenChunk

Mix = Callable[[int, list[torch.Tensor]], torch.Tensor]
"""(step i, states) -> the one stream of latents that they are, or are to become."""


class Denoise(Protocol):
    """`ops.sampling.denoise`, or another loop that is called alike."""

    def __call__(
        self,
        z: torch.Tensor,
        predict: Predict,
        schedule: Sampler,
        *,
        start: int,
        on_step: OnStep | None,
    ) -> torch.Tensor:
        """Denoise from a step to the end."""


@dataclass
class Steps:
    """What is done with the states of a chunk after each step."""

    chunk: OpenChunk
    sampler: Sampler
    begun: StepState
    """Where the walk begins; its states are those before the step at hand."""
    mix: Mix

    def __post_init__(self) -> None:
        self._before = self.begun.states
        until = self.chunk.until_step
        # What stands there already without an estimate takes one step more.
        self._until = None if until is None else max(until, self.begun.step + 1)

    def after(
        self,
        i: int,
        states: list[torch.Tensor],
        kept: list[torch.Tensor],
        attributes: Callable[[], Mapping[str, JsonValue]] = dict,
    ) -> None:
        """Save the states after step i where it is due.

        Args:
            i: The step that was taken.
            states: S tensors ``(F, C, h, w)`` that the next step starts from.
            kept: Those of them that a checkpoint holds.
            attributes: Makes what else it holds.

        Raises:
            StepReached: If the run is to stop here.
        """
        step, checkpoints = i + 1, self.chunk.checkpoints
        if step == self._until and step < self.sampler.num_steps:
            estimate = estimate_after(
                self.sampler, i, self.mix(i, self._before), self.mix(i, states)
            )
            checkpoints.save(StepState(step, kept, attributes(), estimate))
            raise StepReached
        if checkpoints.due(step):
            checkpoints.save(StepState(step, kept, attributes()))
        if self._until is not None:
            self._before = states


def estimate_after(
    sampler: Sampler, i: int, before: torch.Tensor, after: torch.Tensor
) -> torch.Tensor:
    """Return the clean latents that step i implied, from those ``(F, C, h, w)`` before and after it."""
    return clean_estimate(before, after, sampler.alpha_bar(i), sampler.alpha_bar_after(i))


def denoise_chunk(
    chunk: OpenChunk,
    begin: Callable[[], torch.Tensor],
    predict: Predict,
    sampler: Sampler,
    *,
    device: torch.device,
    start: int = 0,
    loop: Denoise = denoise,
) -> torch.Tensor:
    """Denoise one stream of latents, from the chunk's newest checkpoint or the start.

    Args:
        chunk: The chunk.
        begin: Makes the latents ``(F, C, h, w)`` that the first step begins with.
        predict: The model.
        sampler: Its sampler.
        device: Where it computes.
        start: First step to take, where no checkpoint is found.
        loop: Takes the steps.

    Raises:
        StepReached: If the run is to stop on the way.
    """
    saved = chunk.checkpoints.newest()
    first = begin() if saved is None else saved.states[0]
    begun = StepState(start if saved is None else saved.step, [first.to(device)])
    steps = Steps(chunk, sampler, begun, _only)
    on_step = partial(_note, steps)
    return loop(begun.states[0], predict, sampler, start=begun.step, on_step=on_step)


def _note(steps: Steps, i: int, z: torch.Tensor) -> None:
    steps.after(i, [z], [z])


def _only(_step: int, states: list[torch.Tensor]) -> torch.Tensor:
    return states[0]
