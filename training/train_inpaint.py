"""Train the inpainting UNet: nine input channels, as Stable Diffusion's has; the rest stays as it is.

They are the noisy latents, the mask (1 is painted anew) at the latents' size, and the latents of the
picture with mid-grey in place of what the mask hides.
"""

from __future__ import annotations

import random
from typing import Final

import denoising
import family
import numpy as np
import text
import torch
from data import HELD_OUT, MAX_START, random_caption
from loop import fit, load_config
from numpy.typing import NDArray

from latentloom.sprites.render import FPS, SIZE, cover, render
from latentloom.sprites.scene import Scene, Sprite, random_scene

DOWNSCALE: Final = 4
# What a masked pixel is before it is encoded: 0 on [-1, 1].
HIDDEN: Final = np.uint8(128)


def main() -> None:
    """Train it."""
    config = load_config("inpaint")
    torch.manual_seed(config.seed)
    vae = family.load_vae().to(memory_format=torch.channels_last)
    tokenizer, encoder = family.load_tokenizer(), family.load_text_encoder()
    scheduler, unet = denoising.new_scheduler(), family.widen(family.load_unet(), 9)

    def draw(
        rng: random.Random, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        frames, masks, captions = draw_holes(rng, config.own["batch"], config.own["empty"])
        holed = np.where(masks[..., None], HIDDEN, frames)
        clean, seen = family.encode(vae, np.concatenate([frames, holed])).chunk(2)
        noisy, timesteps, wanted = denoising.noised(scheduler, clean, generator)
        with torch.no_grad():
            words = text.embed(tokenizer, encoder, captions)
        predicted = unet(torch.cat([noisy, shrink(masks), seen], 1), timesteps, words).sample
        return denoising.loss_of(scheduler, predicted, wanted, timesteps)

    name = "StableDiffusionInpaintPipeline"
    fit(
        "inpaint",
        config,
        {"inpaint": unet},
        draw,
        lambda: family.export_pipeline("inpaint", name, unet),
    )


def shrink(masks: NDArray[np.bool_]) -> torch.Tensor:
    """Return masks `(B, 64, 64)` as the latents' `(B, 1, 16, 16)`, 1 where any of the pixels is masked."""
    whole = torch.from_numpy(masks[:, None]).float()
    return torch.nn.functional.max_pool2d(whole, DOWNSCALE)


def draw_holes(
    rng: random.Random, num: int, empty: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], list[str]]:
    """Draw frames `(num, 64, 64, 3)`, masks `(num, 64, 64)` and captions.

    Args:
        rng: Where from.
        num: How many.
        empty: The share of pictures without a sprite, whose hole may have a sprite's shape still: so
            that what a hole hides is told by the caption, not by its outline.
    """
    frames, masks, captions = [], [], []
    for _ in range(num):
        seed, start = rng.randrange(HELD_OUT), rng.randrange(MAX_START)
        scene = random_scene(seed)
        shown = Scene((), scene.background) if rng.random() < empty else scene
        frames.append(render(shown, 1, start=start)[0])
        masks.append(draw_mask(rng, scene.sprites[0], start))
        captions.append(random_caption(shown, rng))
    return np.stack(frames), np.stack(masks), captions


def draw_mask(rng: random.Random, sprite: Sprite, start: int) -> NDArray[np.bool_]:
    """Draw a mask `(64, 64)`: the sprite or its box, a little larger; any box; a border; everything."""
    kinds = ("sprite", "around", "box", "border", "all")
    kind = rng.choices(kinds, weights=[3, 3, 3, 2, 1])[0]
    if kind == "all":
        return np.ones((SIZE, SIZE), bool)
    if kind in ("box", "border"):
        height, width = rng.randrange(12, SIZE), rng.randrange(12, SIZE)
        top, left = rng.randrange(SIZE - height), rng.randrange(SIZE - width)
        box = np.zeros((SIZE, SIZE), bool)
        box[top : top + height, left : left + width] = True
        return box if kind == "box" else ~box
    covered = cover(sprite, [start / FPS])[0] > 0
    room = rng.randrange(1, 6)
    if kind == "around":
        return box_around(covered, room)
    grown = torch.nn.functional.max_pool2d(
        torch.from_numpy(covered)[None].float(), 2 * room + 1, stride=1, padding=room
    )
    return grown[0].bool().numpy()


def box_around(covered: NDArray[np.bool_], room: int) -> NDArray[np.bool_]:
    """Return the smallest box around what is covered, `room` pixels larger on each side."""
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    top, left = max(rows[0] - room, 0), max(columns[0] - room, 0)
    box = np.zeros_like(covered)
    box[top : rows[-1] + 1 + room, left : columns[-1] + 1 + room] = True
    return box


if __name__ == "__main__":
    main()
