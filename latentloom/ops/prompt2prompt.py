"""Prompt-to-Prompt: denoise with a target prompt under the attention of a source prompt.

F frames, C channels, h x w latent pixels; L text tokens, of which the first marks the start and all
after the last word mark the end; P pixels of an attention map; B = F x heads.

Source: Prompt-to-Prompt (2208.01626).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from latentloom.ops.sampling import Predict, Schedule, ddim_step
from latentloom.ops.words import align


@dataclass(frozen=True)
class TokenMap:
    """How the target's cross-attention follows from the source's."""

    matrix: torch.Tensor
    """`(L, L)`: how much of a source token's attention (row) a target token (column) gets."""
    own: torch.Tensor
    """`(L,)`: 1 where a target token keeps its own attention, else 0."""
    factors: torch.Tensor
    """`(L,)`: what a target token's attention is multiplied by."""

    def apply(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the target's attention `(B, P, L)` from both branches'."""
        matrix, own, factors = (
            part.to(source.device, source.dtype) for part in (self.matrix, self.own, self.factors)
        )
        return (source @ matrix * (1 - own) + target * own) * factors

    def reweighted(self, tokens: Sequence[int], factor: float) -> TokenMap:
        """Return the map with the attention to some target tokens multiplied."""
        factors = self.factors.clone()
        factors[list(tokens)] *= factor
        return TokenMap(self.matrix, self.own, factors)


def token_spans(words: Sequence[Sequence[int]], length: int) -> list[range]:
    """Return where the tokens of each word stand; those beyond the context stand nowhere.

    Args:
        words: Token ids of each word.
        length: L; the first place and the last are marks.
    """
    spans, start = [], 1
    for word in words:
        stop = min(start + len(word), length - 1)
        spans.append(range(start, stop))
        start = stop
    return spans


def replacing(
    source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], length: int
) -> TokenMap:
    """Give each target word the attention of the source word in its place.

    Words of as many tokens are mapped token by token; else each target token gets an equal share.

    Args:
        source: Token ids of each word of the source prompt.
        target: Token ids of each word of the target prompt.
        length: L.

    Raises:
        ValueError: If the prompts differ in their number of words.
    """
    if len(source) != len(target):
        raise ValueError(f"cannot replace {len(source)} words by {len(target)}")
    matrix = torch.zeros(length, length)
    matrix[0, 0] = 1
    ours, theirs = token_spans(source, length), token_spans(target, length)
    for old, new in zip(ours, theirs, strict=True):
        for index, token in enumerate(old):
            if len(old) == len(new):
                matrix[token, new[index]] = 1
            else:
                places = list(new) or [length - 1]
                matrix[token, places] = 1 / len(places)
    first, after = _end(ours), _end(theirs)
    for token in range(first, length):
        matrix[token, min(token - first + after, length - 1)] = 1
    return TokenMap(matrix, torch.zeros(length), torch.ones(length))


def refining(
    source: Sequence[Sequence[int]], target: Sequence[Sequence[int]], length: int
) -> TokenMap:
    """Give tokens that both prompts have the source's attention; new ones keep their own.

    Args:
        source: Token ids of each word of the source prompt.
        target: Token ids of each word of the target prompt.
        length: L.
    """
    ours, theirs = ([token for word in words for token in word] for words in (source, target))
    first, after = (min(1 + len(tokens), length - 1) for tokens in (ours, theirs))
    pairs = [(1 + i, 1 + j) for i, j in align(ours, theirs) if 1 + i < first and 1 + j < after]
    pairs += [(min(token - after + first, length - 1), token) for token in range(after, length)]
    matrix, own = torch.zeros(length, length), torch.ones(length)
    for old, new in [(0, 0), *pairs]:
        matrix[old, new], own[new] = 1, 0
    return TokenMap(matrix, own, torch.ones(length))


@dataclass(frozen=True)
class Shared:
    """What the branches share in a step."""

    cross_attention: bool = False
    self_attention: bool = False
    heat: bool = False

    @property
    def anything(self) -> bool:
        """Tell whether the source branch is needed at all."""
        return self.cross_attention or self.self_attention or self.heat


# (source z, target z, timestep, shared) -> (source eps, target eps, heat (F, 2, h, w)).
PredictPair = Callable[
    [torch.Tensor, torch.Tensor, int, Shared], tuple[torch.Tensor, torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class Sharing:
    """Until which step the branches share what."""

    cross_steps: int
    """Steps in which cross-attention is the source's."""
    self_steps: int
    """Steps in which self-attention is the source's."""
    threshold: float | None = None
    """Where heat is below this part of its maximum the source's latents stay; nothing: nowhere."""
    first_blend: int = 0
    """First step in which they do."""

    def at(self, i: int) -> Shared:
        """Return what is shared in step i."""
        return Shared(i < self.cross_steps, i < self.self_steps, self.threshold is not None)


@dataclass(frozen=True)
class Branches:
    """Where both branches stand."""

    source: torch.Tensor
    """`(F, C, h, w)`."""
    target: torch.Tensor
    """`(F, C, h, w)`."""
    heat: torch.Tensor
    """`(F, 2, h, w)`: attention to the words that decide what is blended, summed over the steps so far."""

    @classmethod
    def at(cls, z: torch.Tensor) -> Branches:
        """Begin where the source was inverted to, `(F, C, h, w)`."""
        return cls(z, z, torch.zeros(len(z), 2, *z.shape[-2:], device=z.device))


def denoise_pair(
    begun: Branches,
    pair: PredictPair,
    alone: Predict,
    schedule: Schedule,
    sharing: Sharing,
    *,
    start: int = 0,
    on_step: Callable[[int, Branches], None] | None = None,
) -> torch.Tensor:
    """Denoise a source and a target branch side by side, and return the target's latents.

    Once nothing is shared any more the target goes on alone.

    Args:
        begun: Where both stand before step `start`.
        pair: Both branches.
        alone: The target branch without the source.
        schedule: The model's sampler.
        sharing: Until when they share attention, and where latents.
        start: First step to take.
        on_step: Called with `(i, branches)` after each step; `start=i + 1` goes on from there.
    """
    now = begun
    for i in range(start, schedule.num_steps):
        shared = sharing.at(i)
        if not shared.anything:
            now = replace(now, target=ddim_step(alone, schedule)(now.target, i))
        else:
            now = _pair_step(now, i, pair, schedule, sharing)
        if on_step is not None:
            on_step(i, now)
    return now.target


def _pair_step(
    now: Branches, i: int, pair: PredictPair, schedule: Schedule, sharing: Sharing
) -> Branches:
    ours, theirs, heat = pair(now.source, now.target, schedule.timesteps[i], sharing.at(i))
    source, target = schedule.step(ours, i, now.source), schedule.step(theirs, i, now.target)
    warmth = now.heat + heat
    if sharing.threshold is not None and i >= sharing.first_blend:
        target = torch.where(edited_area(warmth, sharing.threshold), target, source)
    return Branches(source, target, warmth)


def edited_area(heat: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return where a word draws attention in either branch: `(F, 1, h, w)` of bool.

    Args:
        heat: `(F, 2, h, w)`, at least 0: attention to the words in the source and the target branch.
        threshold: Part of a frame's and branch's maximum above which a pixel counts, 0 to 1.
    """
    warm = heat > threshold * heat.amax((2, 3), keepdim=True)
    return warm.any(1, keepdim=True)


def _end(spans: Sequence[range]) -> int:
    return spans[-1].stop if spans else 1
