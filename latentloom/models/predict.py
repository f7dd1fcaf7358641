"""Join a denoiser, its text and its guidance into what the sampling loops call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentloom.errors import ModelError
from latentloom.models.protocols import Denoiser
from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.sampling import Predict, guide


def predictor(
    denoiser: Denoiser,
    text: torch.Tensor,
    *,
    negative: torch.Tensor | None = None,
    guidance: float = 1.0,
    control: torch.Tensor | Sequence[torch.Tensor] | None = None,
    micro_batch: int = 8,
) -> Predict:
    """Return `(z, timestep) -> eps` of one chunk or window.

    Args:
        denoiser: The model. One that is not windowed is called in padded micro-batches; a windowed
            one once a pass, with the whole window.
        text: `(1, L, D)`, or `(F, L, D)` with a text for each frame.
        negative: What guidance steers away from, like `text`; needed where guidance is not 1.
        guidance: Scale s of classifier-free guidance; 1 takes no unconditional pass.
        control: `(F, channels, H, W)`, or several of such, for a controlled denoiser.
        micro_batch: Frames in a call, from the numerics profile.

    Raises:
        ModelError: If guidance is not 1 and there is no negative text.
    """
    if guidance != 1 and negative is None:
        raise ModelError(
            f"guidance {guidance:g} needs a negative prompt's embedding; it may be empty"
        )

    conditions = _as_tuple(control)

    def run(z: torch.Tensor, timestep: int, words: torch.Tensor) -> torch.Tensor:
        if denoiser.windowed:
            return denoiser.predict(z, timestep, words, *conditions)
        return in_micro_batches(
            lambda part, text, *parts: denoiser.predict(part, timestep, text, *parts),
            micro_batch,
            z,
            words.expand(len(z), -1, -1),
            *conditions,
        )

    def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
        cond = run(z, timestep, text)
        if guidance == 1 or negative is None:
            return cond
        return guide(cond, run(z, timestep, negative), guidance)

    return predict


def _as_tuple(
    control: torch.Tensor | Sequence[torch.Tensor] | None,
) -> tuple[torch.Tensor, ...]:
    if control is None:
        return ()
    return (control,) if isinstance(control, torch.Tensor) else tuple(control)
