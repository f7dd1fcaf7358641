"""A UNet that is run for a source and for a target, so that one pass can use the attention of the other.

F frames, C latent channels, h x w latent pixels, L text tokens; P pixels of an attention map;
B = F x heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch

from latentloom.errors import ModelError
from latentloom.models.image import ImageDenoiser, twin_of
from latentloom.models.predict import predictor
from latentloom.models.protocols import Denoiser
from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.prompt2prompt import PredictPair, Shared, TokenMap
from latentloom.ops.sampling import guide

Branch = Literal["source", "target"]
BRANCHES: Final[tuple[Branch, ...]] = ("source", "target")

# Larger self-attention maps stay the target's own, as in the authors' code: they hold texture.
MAX_SELF_PIXELS: Final = 32 * 32


@dataclasses.dataclass
class _Board:
    """Where the source pass leaves attention for the target pass."""

    tokens: TokenMap
    warm_tokens: tuple[Sequence[int], Sequence[int]]
    branch: Branch = "source"
    shared: Shared = dataclasses.field(default_factory=Shared)
    size: tuple[int, int] = (0, 0)
    kept: dict[str, tuple[torch.Tensor, ...]] = dataclasses.field(default_factory=dict)
    heat: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def watches(self, cross: bool, num_pixels: int) -> bool:
        """Tell whether a layer's attention is of interest in the pass that runs."""
        if cross:
            return self.shared.cross_attention or self.shared.heat
        return self.shared.self_attention and num_pixels <= MAX_SELF_PIXELS

    def cross_attention(self, layer: str, found: torch.Tensor, heads: int) -> torch.Tensor:
        """Keep the source's attention `(B, P, L)`, or return what the target's becomes."""
        if self.shared.cross_attention and self.branch == "source":
            self.kept[layer] = (found,)
        elif self.shared.cross_attention:
            (source,) = self.kept.pop(layer)
            found = self.tokens.apply(source, found)
        if self.shared.heat:
            self._note_heat(found, heads)
        return found

    def self_attention(
        self, layer: str, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the source's query and key, or return them instead of the target's."""
        if self.branch == "source":
            self.kept[layer] = (query, key)
            return query, key
        query, key = self.kept.pop(layer)
        return query, key

    def take_heat(self, num_frames: int, device: torch.device) -> torch.Tensor:
        """Return the mean over layers of one pass, `(F, 1, h, w)`, and begin anew."""
        empty = torch.zeros(num_frames, 1, *self.size, device=device)
        mean = torch.stack(self.heat).mean(0) if self.heat else empty
        self.heat.clear()
        return mean

    def _note_heat(self, attention: torch.Tensor, heads: int) -> None:
        tokens = self.warm_tokens[self.branch == "target"]
        height, width = self.size
        factor = round((height * width / attention.shape[1]) ** 0.5)
        warm = attention[:, :, list(tokens)].float().sum(-1)
        small = warm.view(-1, heads, -(-height // factor), -(-width // factor)).mean(
            1, keepdim=True
        )
        self.heat.append(torch.nn.functional.interpolate(small, self.size, mode="bilinear"))


@dataclasses.dataclass
class _Processor:
    """An attention processor of diffusers: the layer's own, until its board watches the layer."""

    own: Any
    board: _Board
    layer: str
    cross: bool

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from `(F, P, width)` to the tokens `(F, L, width)`, or to the same pixels."""
        if not self.board.watches(self.cross, hidden_states.shape[1]):
            return torch.as_tensor(
                self.own(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            )
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        if self.cross:
            found = attn.get_attention_scores(query, key, attention_mask)
            weights = self.board.cross_attention(self.layer, found, attn.heads)
        else:
            query, key = self.board.self_attention(self.layer, query, key)
            weights = attn.get_attention_scores(query, key, attention_mask)
        attended = attn.batch_to_head_dim(torch.bmm(weights, value))
        result = attn.to_out[1](attn.to_out[0](attended)) / attn.rescale_output_factor
        return torch.as_tensor(result)


class PairedDenoiser:
    """An image denoiser of two branches: the target may use the attention of the source.

    Its `denoiser` predicts one branch alone, with attention of its own.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        tokens: TokenMap,
        warm_tokens: tuple[Sequence[int], Sequence[int]] = ((), ()),
    ) -> None:
        """Make a twin of the UNet that shares its weights, so that the UNet stays as it is.

        Args:
            denoiser: A `UNet2DConditionModel`'s.
            tokens: How the target's cross-attention follows from the source's.
            warm_tokens: Tokens whose heat is asked for, in the source's and the target's prompt.

        Raises:
            ModelError: If the denoiser has no such attention.
        """
        if not isinstance(denoiser, ImageDenoiser):
            raise ModelError(
                f"{type(denoiser).__name__} has no attention that Prompt-to-Prompt can edit"
            )
        self._board = _Board(tokens, warm_tokens)
        self.denoiser = dataclasses.replace(denoiser, module=twin_of(denoiser.module))
        own = self.denoiser.module.attn_processors
        self.denoiser.module.set_attn_processor(
            {name: self._watching(name, processor) for name, processor in own.items()}
        )

    def predict(
        self,
        source: torch.Tensor,
        target: torch.Tensor,
        timestep: int,
        texts: tuple[torch.Tensor, torch.Tensor],
        shared: Shared,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict the noise of both branches, one pass after the other.

        Args:
            source: `(F, C, h, w)`.
            target: `(F, C, h, w)`.
            timestep: As in `Denoiser.predict`.
            texts: Of source and target, `(1, L, D)` or `(F, L, D)`.
            shared: What the target takes of the source.

        Returns:
            Source eps and target eps, `(F, C, h, w)`, and the heat of both, `(F, 2, h, w)`.
        """
        board = self._board
        board.shared, board.size = shared, (source.shape[-2], source.shape[-1])
        eps, heat = [], []
        for board.branch, z, text in zip(BRANCHES, (source, target), texts, strict=True):
            eps.append(self.denoiser.predict(z, timestep, text))
            heat.append(board.take_heat(len(z), z.device))
        board.shared = Shared()
        return eps[0], eps[1], torch.cat(heat, dim=1)

    def _watching(self, name: str, own: Any) -> Any:
        # Attention outside of transformer blocks (attn1: to pixels, attn2: to text) has no text.
        if ".transformer_blocks." not in name:
            return own
        return _Processor(own, self._board, name, cross=name.endswith("attn2.processor"))


def pair_predictor(
    paired: PairedDenoiser,
    texts: tuple[torch.Tensor, torch.Tensor],
    *,
    negative: torch.Tensor | None = None,
    guidance: float = 1.0,
    micro_batch: int = 8,
) -> PredictPair:
    """Return what `denoise_pair` asks: the source without guidance, as it was inverted; the target with it.

    Args:
        paired: The model; the attention of the unconditional pass stays as it is.
        texts: Of source and target, `(1, L, D)`.
        negative: What guidance steers away from; needed where guidance is not 1.
        guidance: Scale of the target's classifier-free guidance.
        micro_batch: Frames in a call, from the numerics profile.
    """
    away = None
    if negative is not None:
        away = predictor(paired.denoiser, negative, micro_batch=micro_batch)

    def pair(
        source: torch.Tensor, target: torch.Tensor, timestep: int, shared: Shared
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        joined = in_micro_batches(
            lambda a, b: torch.cat(paired.predict(a, b, timestep, texts, shared), dim=1),
            micro_batch,
            source,
            target,
        )
        channels = source.shape[1]
        ours, theirs, heat = torch.tensor_split(joined, [channels, 2 * channels], dim=1)
        if guidance != 1 and away is not None:
            theirs = guide(theirs, away(target, timestep), guidance)
        return ours, theirs, heat

    return pair
