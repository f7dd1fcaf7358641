"""The CLIP text encoder, from prompts to token embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from latentloom.models.offload import execution_device
from latentloom.ops.words import split_words


@dataclasses.dataclass(frozen=True, eq=False)
class CLIPText:
    """`CLIPTokenizer` and `CLIPTextModel`."""

    tokenizer: Any
    module: Any

    @property
    def length(self) -> int:
        """L, the tokens that the context holds, marks among them."""
        positions = int(self.module.config.max_position_embeddings)
        return min(positions, int(self.tokenizer.model_max_length))

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Return the last hidden states, float32 `(len(prompts), L, D)`.

        One prompt a call, so that an embedding's bits do not depend on its neighbours.
        """
        return torch.cat([self._encode_one(prompt) for prompt in prompts])

    def dropped(self, prompt: str) -> str:
        """Return the end of a prompt that the context has no room for; mostly empty."""
        tokens = self.tokenizer(prompt, truncation=False, verbose=False).input_ids
        # The last token is the end mark, which always has a place.
        beyond = tokens[self.length - 1 : -1]
        return str(self.tokenizer.decode(beyond)).strip() if beyond else ""

    def words(self, prompt: str) -> list[list[int]]:
        """Return the tokens of each word of a prompt; a word's do not depend on its neighbours."""
        return [
            list(self.tokenizer(word, add_special_tokens=False).input_ids)
            for word in split_words(prompt)
        ]

    def _encode_one(self, prompt: str) -> torch.Tensor:
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_tensors="pt",
        )
        hidden = self.module(tokens.input_ids.to(execution_device(self.module)))[0]
        return torch.as_tensor(hidden.float())
