"""How much of a text a model's context holds, by its tokenizer's files. Planning asks: no torch here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentloom.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
"""How CLIP cuts a text before byte-pair encoding. Source: github.com/openai/CLIP, `simple_tokenizer.py`."""
NUM_MARKS = 2
"""Start and end of a text, which always have a place."""


def dropped_ends(folder: Path, texts: list[str]) -> dict[str, str]:
    """Return the end that a model's context has no room for, of each text that has one.

    Args:
        folder: Holds `tokenizer/` and `text_encoder/`; where neither names a limit nothing is dropped.
        texts: Prompts.

    Raises:
        ModelError: If the tokenizer's files cannot be read.
    """
    length = _context(folder)
    if length is None:
        return {}
    tokenizer = _tokenizer(folder / "tokenizer")
    ends = {}
    for text in texts:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        if len(encoded.ids) > length - NUM_MARKS:
            ends[text] = text[encoded.offsets[length - NUM_MARKS][0] :]
    return ends


def _context(folder: Path) -> int | None:
    """Return the tokens that a context holds, marks among them."""
    tokens = _read(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
    positions = _read(folder / "text_encoder" / "config.json").get("max_position_embeddings")
    limits = [int(limit) for limit in (tokens, positions) if limit is not None]
    return min(limits, default=None)


def _tokenizer(folder: Path) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        pairs = models.BPE.from_file(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    # The library raises plain exceptions.
    except Exception as error:
        raise ModelError(
            f"{folder} cannot be read as a tokenizer: {error}; fetch or copy it again"
        ) from error
    tokenizer = Tokenizer(pairs)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return tokenizer


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; the model is damaged") from error
    return data if isinstance(data, dict) else {}
