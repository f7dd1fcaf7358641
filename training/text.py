"""The tokenizer, a byte-pair encoding learnt from captions, and the untrained text encoder."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path
from typing import Final

import torch
from data import captions_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentloom.sprites.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    STYLES,
    Background,
    Motion,
    Scene,
    Sprite,
)

MAX_TOKENS: Final = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer() -> CLIPTokenizer:
    """Learn the merges from every caption there is; any other text falls back to bytes."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(_all_captions(), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(m) for m in merges)]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*words, START, END]))}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)
    # Through the files, so that training sees what every later user loads.
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer, with the two files that older loaders look for."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return the untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def embed(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, texts: list[str]) -> torch.Tensor:
    """Return the embeddings of texts, `(B, 32, 128)`; each distinct text is encoded once."""
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer(
        distinct, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    hidden = encoder(tokens.input_ids)[0]
    return hidden[[distinct.index(text) for text in texts]]


def _all_captions() -> list[str]:
    looks = itertools.product(SHAPES, COLOURS, STYLES, MOTIONS, BACKGROUNDS)
    texts = []
    for shape, colour, style, motion, background in looks:
        sprite = Sprite(shape, colour, style, motion=Motion(motion))
        texts += captions_of(Scene((sprite, sprite), Background(background)))
    return texts + captions_of(Scene(())) * 100
