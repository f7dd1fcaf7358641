"""Prompt-to-Prompt on a tiny UNet: what the target's attention is, against a hand-made oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models import load
from latentloom.models.attention import PairedDenoiser, pair_predictor
from latentloom.models.image import ImageDenoiser
from latentloom.models.predict import predictor
from latentloom.models.text import CLIPText
from latentloom.ops.noise import frame_noise
from latentloom.ops.prompt2prompt import (
    Branches,
    Shared,
    Sharing,
    TokenMap,
    denoise_pair,
    refining,
)
from latentloom.ops.sampling import denoise

PROMPTS = "a red cat", "a cat in a hat"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0"
Z = frame_noise(0, "test", range(3), (4, 8, 8))
OTHER = frame_noise(0, "other", range(3), (4, 8, 8))


def token_map(model: load.ImageModel, prompts: tuple[str, str] = PROMPTS) -> TokenMap:
    assert isinstance(model.text, CLIPText)
    source, target = (model.text.words(prompt) for prompt in prompts)
    return refining(source, target, 24)


def texts(model: load.ImageModel) -> tuple[torch.Tensor, torch.Tensor]:
    source, target = (model.text.encode([prompt]) for prompt in PROMPTS)
    return source, target


@contextmanager
def watched(paired: PairedDenoiser, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """Note ``(hidden states, text or nothing, result)`` of an attention layer, a call each."""
    calls: list[tuple[Any, ...]] = []

    def note(layer: Any, args: Any, kwargs: Any, result: Any) -> None:
        calls.append((args[0], kwargs["encoder_hidden_states"], result))

    layer = paired.denoiser.module.get_submodule(name)
    handle = layer.register_forward_hook(note, with_kwargs=True)
    yield calls
    handle.remove()


def heads(layer: Any, projected: torch.Tensor) -> torch.Tensor:
    """Cut `(F, P, width)` into `(F, heads, P, width of a head)`."""
    return projected.view(*projected.shape[:2], layer.heads, -1).transpose(1, 2)


def probabilities(layer: Any, hidden: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    query, key = heads(layer, layer.to_q(hidden)), heads(layer, layer.to_k(context))
    width = query.shape[-1]
    return torch.softmax(query @ key.transpose(2, 3) / width**0.5, dim=-1)


def attended(layer: Any, weights: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    result = (weights @ heads(layer, layer.to_v(context))).transpose(1, 2).flatten(2)
    return torch.as_tensor(layer.to_out[0](result))


def test_cross_attention_is_the_sources_mapped_to_the_targets_tokens(
    image: load.ImageModel,
) -> None:
    tokens = token_map(image)
    paired = PairedDenoiser(image.denoiser, tokens)
    with watched(paired, f"{LAYER}.attn2") as calls:
        paired.predict(Z, OTHER, 501, texts(image), Shared(cross_attention=True))
    (hidden, text, before), (other, words, after) = calls
    layer = paired.denoiser.module.get_submodule(f"{LAYER}.attn2")
    ours, theirs = probabilities(layer, hidden, text), probabilities(layer, other, words)
    assert torch.allclose(before, attended(layer, ours, text), atol=1e-6)
    wanted = torch.empty_like(theirs)
    for column in range(24):
        rows = tokens.matrix[:, column].nonzero()
        wanted[..., column] = ours[..., int(rows[0])] if len(rows) else theirs[..., column]
    assert torch.allclose(after, attended(layer, wanted, words), atol=1e-6)
    assert not torch.allclose(after, attended(layer, theirs, words), atol=1e-3)


def test_self_attention_takes_the_sources_weights_and_the_targets_values(
    image: load.ImageModel,
) -> None:
    paired = PairedDenoiser(image.denoiser, token_map(image))
    with watched(paired, f"{LAYER}.attn1") as calls:
        paired.predict(Z, OTHER, 501, texts(image), Shared(self_attention=True))
    (hidden, _, _), (other, _, after) = calls
    layer = paired.denoiser.module.get_submodule(f"{LAYER}.attn1")
    weights = probabilities(layer, hidden, hidden)
    assert torch.allclose(after, attended(layer, weights, other), atol=1e-6)
    assert not torch.allclose(
        after, attended(layer, probabilities(layer, other, other), other), atol=1e-3
    )


def test_heat_is_the_mean_attention_to_the_words(image: load.ImageModel) -> None:
    paired = PairedDenoiser(image.denoiser, token_map(image), ([2, 3], [4]))
    assert isinstance(image.denoiser, ImageDenoiser)
    cross = [
        name.removesuffix(".processor")
        for name in image.denoiser.module.attn_processors
        if "attn2" in name
    ]
    assert len(cross) > 1
    maps = []
    for name in cross:
        with watched(paired, name) as calls:
            heat = paired.predict(Z, OTHER, 501, texts(image), Shared(heat=True))[2]
        layer = paired.denoiser.module.get_submodule(name)
        for (hidden, text, _), columns in zip(calls, ([2, 3], [4]), strict=True):
            found = probabilities(layer, hidden, text)[..., columns].sum(-1).mean(1)
            side = round(found.shape[1] ** 0.5)
            small = found.view(3, 1, side, side)
            maps.append(torch.nn.functional.interpolate(small, (8, 8), mode="bilinear"))
    for branch in range(2):
        wanted = torch.stack(maps[branch::2]).mean(0)
        assert torch.allclose(heat[:, branch : branch + 1], wanted, atol=1e-6)


def edit(
    image: load.ImageModel,
    sharing: Sharing,
    *,
    prompts: tuple[str, str] = PROMPTS,
    guidance: float = 1.0,
    frames: slice = slice(None),
    warm: tuple[list[int], list[int]] = ([], []),
) -> torch.Tensor:
    source, target = (image.text.encode([prompt]) for prompt in prompts)
    guided: dict[str, Any] = {
        "negative": image.text.encode(["bad"]) if guidance != 1 else None,
        "guidance": guidance,
    }
    paired = PairedDenoiser(image.denoiser, token_map(image, prompts), warm)
    return denoise_pair(
        Branches.at(Z[frames]),
        pair_predictor(paired, (source, target), micro_batch=2, **guided),
        predictor(image.denoiser, target, micro_batch=2, **guided),
        image.sampler(3),
        sharing,
    )


def plain(image: load.ImageModel, prompt: str, guidance: float = 1.0) -> torch.Tensor:
    negative = image.text.encode(["bad"]) if guidance != 1 else None
    text = image.text.encode([prompt])
    predict = predictor(image.denoiser, text, negative=negative, guidance=guidance, micro_batch=2)
    return denoise(Z, predict, image.sampler(3))


def test_sharing_nothing_is_denoising_with_the_target_prompt(image: load.ImageModel) -> None:
    assert torch.equal(edit(image, Sharing(0, 0), guidance=5.0), plain(image, PROMPTS[1], 5.0))


@pytest.mark.parametrize("sharing", [Sharing(3, 0), Sharing(0, 3), Sharing(2, 1, threshold=0.3)])
def test_what_is_shared_changes_the_edit(image: load.ImageModel, sharing: Sharing) -> None:
    edited = edit(image, sharing, guidance=5.0, warm=([3], [3]))
    assert not torch.allclose(edited, plain(image, PROMPTS[1], 5.0), atol=1e-3)


@pytest.mark.parametrize("sharing", [Sharing(3, 3), Sharing(2, 1), Sharing(3, 3, threshold=0.3)])
def test_equal_prompts_return_the_source(image: load.ImageModel, sharing: Sharing) -> None:
    same = (PROMPTS[0], PROMPTS[0])
    edited = edit(image, sharing, prompts=same, warm=([3], [3]))
    assert torch.allclose(edited, plain(image, PROMPTS[0]), atol=1e-5)


def test_source_stays_where_no_word_is_warm(image: load.ImageModel) -> None:
    nowhere = edit(image, Sharing(3, 3, threshold=0.0), guidance=5.0, warm=([], []))
    assert torch.allclose(nowhere, plain(image, PROMPTS[0]), atol=1e-5)
    everywhere = edit(image, Sharing(0, 0, threshold=0.0), guidance=5.0, warm=([3], [3]))
    assert torch.allclose(everywhere, plain(image, PROMPTS[1], 5.0), atol=1e-4)
    late = Sharing(3, 3, threshold=0.0, first_blend=3)
    assert not torch.allclose(edit(image, late, guidance=5.0), nowhere, atol=1e-3)


def test_pair_leaves_the_model_as_it_is(image: load.ImageModel) -> None:
    assert isinstance(image.denoiser, ImageDenoiser)
    module = image.denoiser.module
    processors = dict(module.attn_processors)
    paired = PairedDenoiser(image.denoiser, token_map(image))
    paired.predict(Z, OTHER, 501, texts(image), Shared(True, True, True))
    assert dict(module.attn_processors) == processors
    twins = paired.denoiser.module.parameters()
    assert all(ours is theirs for ours, theirs in zip(module.parameters(), twins, strict=True))


@pytest.mark.parametrize("cuts", [[1], [2], [1, 2]])
def test_frames_do_not_depend_on_the_chunk(image: load.ImageModel, cuts: list[int]) -> None:
    sharing = Sharing(2, 1, threshold=0.3)
    whole = edit(image, sharing, guidance=5.0, warm=([3], [3]))
    edges = [0, *cuts, 3]
    parts = [
        edit(image, sharing, guidance=5.0, warm=([3], [3]), frames=slice(a, b))
        for a, b in itertools.pairwise(edges)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_model_without_text_attention_is_refused(
    video: load.VideoModel, image: load.ImageModel
) -> None:
    with pytest.raises(ModelError, match="VideoDenoiser has no attention"):
        PairedDenoiser(video.denoiser, token_map(image))
