"""Train the contrastive image-text model that scores edits; its text tower starts as the family's.

Source: CLIP (2103.00020), its symmetric loss; and each frame has captions of its own with one attribute
wrong, so that no attribute may be overlooked.
"""

from __future__ import annotations

import copy
import itertools
import json
import random
from pathlib import Path
from typing import Final

import family
import numpy as np
import text
import torch
from data import HELD_OUT, MAX_START
from loop import fit, load_config
from numpy.typing import NDArray
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from latentloom.models.contrastive import load_contrastive
from latentloom.sprites.caption import caption
from latentloom.sprites.render import SIZE, render
from latentloom.sprites.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STYLES,
    Background,
    BackgroundKind,
    Colour,
    Scene,
    Shape,
    Sprite,
    Style,
    change_background,
    random_scene,
    recolour,
    reshape,
    restyle,
)

NUM_WRONG: Final = 4
# Frames come from [-1, 1] in the family; the processor's file says so to whoever else loads the model.
PROCESSOR: Final = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"height": SIZE, "width": SIZE},
    "do_center_crop": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def new_model() -> CLIPModel:
    """Return the model: a small vision transformer, and the family's text encoder as it is."""
    encoder = family.load_text_encoder()
    vision = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": SIZE,
        "patch_size": 8,
    }
    config = CLIPConfig(
        text_config=encoder.config.to_dict(), vision_config=vision, projection_dim=64
    )
    model = CLIPModel(config)
    model.text_model.load_state_dict(encoder.state_dict())
    return model.train().requires_grad_(True)


def main() -> None:
    """Train it, then say how often a held-out frame finds its caption."""
    config = load_config("contrastive")
    torch.manual_seed(config.seed)
    model, tokenizer = new_model(), family.load_tokenizer()

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        frames, captions = draw_captioned(rng, config.own["batch"])
        images = roughen(family.pixels(frames), generator, config.own["noise"])
        return contrast(model, tokenizer, images, captions)

    steps = fit(
        "contrastive", config, {"contrastive": model}, draw, lambda: export(model, tokenizer)
    )
    print(f"{steps} steps;", "; ".join(f"{what} {share:.1%}" for what, share in measure().items()))


def draw_captioned(rng: random.Random, num: int) -> tuple[NDArray[np.uint8], list[list[str]]]:
    """Draw frames `(num, 64, 64, 3)`, and for each its caption and `NUM_WRONG` wrong ones."""
    frames, captions = [], []
    for _ in range(num):
        sprites = rng.choices((0, 1, 2), weights=[1, 8, 1])[0]
        scene = random_scene(rng.randrange(HELD_OUT), num_sprites=sprites)
        frames.append(render(scene, 1, start=rng.randrange(MAX_START))[0])
        parts = {
            "style": rng.random() < 0.8,
            "motion": rng.random() < 0.3,
            "background": rng.random() < 0.8,
        }
        scenes = [scene, *(spoil(scene, rng) for _ in range(NUM_WRONG))]
        captions.append([caption(one, **parts) for one in scenes])
    return np.stack(frames), captions


def spoil(scene: Scene, rng: random.Random) -> Scene:
    """Change one attribute of a scene at random, mostly a shape, which is learnt last.

    Drawing what it has already changes nothing.
    """
    kind = rng.choices(("shape", "colour", "style", "background"), weights=[4, 1, 1, 1])[0]
    if kind == "background" or not scene.sprites:
        return change_background(scene, rng.choice(BACKGROUNDS))
    index = rng.randrange(len(scene.sprites))
    if kind == "colour":
        return recolour(scene, rng.choice(COLOURS), index=index)
    if kind == "style":
        return restyle(scene, rng.choice(STYLES), index=index)
    return reshape(scene, rng.choice(SHAPES), index=index)


def roughen(images: torch.Tensor, generator: torch.Generator, noise: float) -> torch.Tensor:
    """Blur every second image, and add noise to all: what is scored later was made by a model."""
    soft = torch.nn.functional.avg_pool2d(images[::2], 2)
    images[::2] = torch.nn.functional.interpolate(soft, scale_factor=2, mode="bilinear")
    return images + noise * torch.randn(images.shape, generator=generator)


def contrast(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: torch.Tensor, captions: list[list[str]]
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return CLIP's loss with every wrong caption in the choice too, and the share of right choices."""
    texts = list(dict.fromkeys(one for each in captions for one in each))
    own = torch.tensor([texts.index(each[0]) for each in captions])
    tokens = tokenizer(texts, padding=True, return_tensors="pt").input_ids
    seen = model.get_image_features(images).pooler_output
    said = model.get_text_features(tokens).pooler_output
    cosines = torch.nn.functional.normalize(seen) @ torch.nn.functional.normalize(said).T
    logits = cosines * model.logit_scale.exp().clamp(max=100)
    # Several frames may have one caption: then each of them is right.
    same = (own[:, None] == own[None]).float()
    to_image = torch.nn.functional.cross_entropy(logits[:, own].T, same / same.sum(1, keepdim=True))
    to_text = torch.nn.functional.cross_entropy(logits, own)
    right = (logits.argmax(1) == own).float().mean()
    return (to_image + to_text) / 2, {"right": right.item(), "to_text": to_text.item()}


def export(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Write the model, its tokenizer, and how it wants its images."""
    half = copy.deepcopy(model).half()

    def save(folder: Path) -> None:
        half.save_pretrained(folder)
        text.save_tokenizer(tokenizer, folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n")

    family.export("contrastive", save)


def measure(num_frames: int = 500) -> dict[str, float]:
    """Return how often a held-out frame is nearest to its caption, of all that there are.

    Frames as rendered and as the VAE gives them back, one of each clip; captions name colour, shape,
    style and background. And the share of single attributes that the nearest caption gets right.
    """
    model, vae = load_contrastive(family.EMBEDDED / "contrastive"), family.load_vae()
    looks = list(itertools.product(COLOURS, SHAPES, STYLES, BACKGROUNDS))
    said = model.embed_texts([caption(_scene_of(*look), motion=False) for look in looks])
    scenes = [random_scene(HELD_OUT + index) for index in range(num_frames)]
    frames = np.concatenate([render(scene, 1, start=k % 48) for k, scene in enumerate(scenes)])
    shares = {}
    for name, shown in (
        ("rendered", frames),
        ("through the VAE", family.decode(vae, family.encode(vae, frames))),
    ):
        nearest = (model.embed_frames(family.pixels(shown)) @ said.T).argmax(1).tolist()
        right = np.array([_named(s, *looks[k]) for s, k in zip(scenes, nearest, strict=True)])
        shares[name] = float(right.all(1).mean())
        for column, attribute in enumerate(("colour", "shape", "style", "background")):
            shares[f"{name}, {attribute}"] = float(right[:, column].mean())
    return shares


def _scene_of(colour: Colour, shape: Shape, style: Style, background: BackgroundKind) -> Scene:
    return Scene((Sprite(shape, colour, style),), Background(background))


def _named(
    scene: Scene, colour: Colour, shape: Shape, style: Style, background: BackgroundKind
) -> tuple[bool, ...]:
    """Tell which attributes of a scene are as named."""
    sprite = scene.sprites[0]
    return (
        sprite.colour == colour,
        sprite.shape == shape,
        sprite.style == style,
        scene.background.kind == background,
    )


if __name__ == "__main__":
    main()
