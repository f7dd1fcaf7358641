"""Edit frames by two prompts, attention held where they agree (Prompt-to-Prompt, 2208.01626)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from latentloom.errors import ModelError
from latentloom.models.attention import PairedDenoiser, pair_predictor
from latentloom.models.load import ImageModel
from latentloom.models.predict import predictor
from latentloom.models.text import CLIPText
from latentloom.ops.prompt2prompt import (
    Branches,
    Sharing,
    denoise_pair,
    refining,
    replacing,
    token_spans,
)
from latentloom.ops.sampling import invert
from latentloom.ops.words import find_word
from latentloom.schemas.edits import Prompt2PromptEdit
from latentloom.tasks.checkpoints import StepState
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.loading import embed
from latentloom.tasks.stepping import Steps
from latentloom.tasks.tensors import Array


class Guidance(TypedDict):
    """What both ways to predict the target are told."""

    negative: torch.Tensor | None
    guidance: float
    micro_batch: int


def prompt2prompt(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    canvas = Canvas.of(chunk, chunk.params(Prompt2PromptEdit))
    return canvas.decode(prompt2prompt_latents(canvas))


def prompt2prompt_latents(canvas: Canvas) -> torch.Tensor:
    """Invert the frames with the source prompt, and denoise both branches from there."""
    chunk, model = canvas.chunk, canvas.model
    stage = chunk.params(Prompt2PromptEdit)
    sampler = model.sampler(stage.num_inference_steps)
    prompts = chunk.timed["source"], chunk.timed["prompt"]
    source, target = (embed(model, prompt) for prompt in prompts)
    negative = chunk.timed.get("negative")
    guidance: Guidance = {
        "negative": None if negative is None else embed(model, negative),
        "guidance": stage.guidance_scale,
        "micro_batch": chunk.micro_batch,
    }
    as_it_is = predictor(model.denoiser, source, micro_batch=chunk.micro_batch)
    paired = paired_denoiser(stage, model, prompts)
    saved = chunk.checkpoints.newest()
    if saved is None:
        begun = Branches.at(invert(canvas.encode(chunk.input_frames()), as_it_is, sampler))
    else:
        begun = _restored(saved.states, model.vae.device)
    start = 0 if saved is None else saved.step
    steps = Steps(chunk, sampler, StepState(start, _kept(begun)), lambda _, states: states[1])

    def save(i: int, now: Branches) -> None:
        states = _kept(now)
        steps.after(i, states, states)

    return denoise_pair(
        begun,
        pair_predictor(paired, (source, target), **guidance),
        predictor(model.denoiser, target, **guidance),
        sampler,
        sharing(stage),
        start=start,
        on_step=save,
    )


def _kept(branches: Branches) -> list[torch.Tensor]:
    """Return what a checkpoint holds: both branches, and the heat in two channels of the latents' many."""
    heat = torch.zeros_like(branches.source)
    heat[:, :2] = branches.heat
    return [branches.source, branches.target, heat]


def _restored(states: Sequence[torch.Tensor], device: torch.device) -> Branches:
    source, target, heat = (state.to(device) for state in states)
    return Branches(source, target, heat[:, :2].contiguous())


def sharing(stage: Prompt2PromptEdit) -> Sharing:
    """Return until which step the branches share what."""
    num_steps, blend = stage.num_inference_steps, stage.local_blend
    return Sharing(
        cross_steps=round(stage.cross_replace_steps * num_steps),
        self_steps=round(stage.self_replace_steps * num_steps),
        threshold=None if blend is None else blend.threshold,
        first_blend=0 if blend is None else round(blend.start * num_steps),
    )


def paired_denoiser(
    stage: Prompt2PromptEdit, model: ImageModel, prompts: tuple[str, str]
) -> PairedDenoiser:
    """Return a model's denoiser of two branches.

    Args:
        stage: Says how words are mapped, and which blend.
        model: The model; its tokenizer says which tokens a word has.
        prompts: The source's and the target's.

    Raises:
        ModelError: If the model does not read words.
    """
    if not isinstance(model.text, CLIPText):
        raise ModelError(f"{type(model.text).__name__} has no words that Prompt-to-Prompt can map")
    source, target = (model.text.words(prompt) for prompt in prompts)
    length = model.text.length
    tokens = (replacing if stage.mode == "replace" else refining)(source, target, length)
    spans = token_spans(source, length), token_spans(target, length)
    for word, factor in stage.equalizer.items():
        tokens = tokens.reweighted(_tokens_of(prompts[1], word, spans[1]), factor)
    words = stage.local_blend.words if stage.local_blend else ()
    ours, theirs = (
        [token for word in words for token in _tokens_of(prompt, word, places)]
        for prompt, places in zip(prompts, spans, strict=True)
    )
    return PairedDenoiser(model.denoiser, tokens, (ours, theirs))


def _tokens_of(prompt: str, word: str, spans: Sequence[range]) -> list[int]:
    return [token for index in find_word(prompt, word) for token in spans[index]]
