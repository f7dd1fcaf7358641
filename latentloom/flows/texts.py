"""Check the texts that stages read: words that a stage names, and ends that a model has no room for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latentloom.flows.keys import stage_models
from latentloom.ops.words import find_word, split_words
from latentloom.schemas.edits import Prompt2PromptEdit
from latentloom.schemas.facts import Facts
from latentloom.schemas.load import with_overrides
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stages import Stage

_LONGEST_QUOTE = 60


def recipe_texts(recipe: Recipe) -> list[str]:
    """Return the distinct texts of a recipe, those of redo ranges among them."""
    recipes = [recipe, *(with_overrides(recipe, redo.overrides) for redo in recipe.redo)]
    texts = [
        text
        for one in recipes
        for entry in one.prompts
        for text in (entry.source, entry.target, entry.instruction, entry.negative)
    ]
    return list(dict.fromkeys(texts))


def word_faults(stage: Prompt2PromptEdit, source: str, target: str) -> list[str]:
    """Say which words that a stage needs are not in its prompts.

    Args:
        stage: The stage.
        source: Text of its source prompt.
        target: Text of its prompt.
    """
    faults = []
    lengths = len(split_words(source)), len(split_words(target))
    if stage.mode == "replace" and lengths[0] != lengths[1]:
        faults.append(
            f"mode replace maps word to word, but {_quoted(source)} has {lengths[0]} and"
            f" {_quoted(target)} has {lengths[1]}; give both as many, or set mode: refine"
        )
    faults += [
        f"equalizer: {word!r} is no word of {_quoted(target)}; name one of it"
        for word in stage.equalizer
        if not find_word(target, word)
    ]
    faults += [
        f"local_blend.words: {word!r} is a word of neither {_quoted(source)} nor"
        f" {_quoted(target)}; name words of them"
        for word in (stage.local_blend.words if stage.local_blend else ())
        if not find_word(source, word) and not find_word(target, word)
    ]
    return faults


def unread_ends(stage: Stage, timed: Mapping[str, Any], facts: Facts) -> list[str]:
    """Say which of the texts in force are longer than what a stage's models read.

    Args:
        stage: The stage.
        timed: Its time-ranged values; those of ``fuse`` lie under the role of each source.
        facts: What was looked up: the ends for which a model has no room.
    """
    models = stage_models(stage)
    return [
        f"stage {stage.name!r}: model {models[role]!r} has no room for the end of a prompt:"
        f" {_quoted(facts.models[models[role]].dropped[text])}; shorten it"
        for role, text in _read_texts(timed)
        if text in facts.models[models[role]].dropped
    ]


def _read_texts(timed: Mapping[str, Any], role: str = "model") -> Iterator[tuple[str, str]]:
    for key, value in timed.items():
        if isinstance(value, Mapping):
            yield from _read_texts(value, key)
        elif isinstance(value, str):
            yield role, value


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "...")
