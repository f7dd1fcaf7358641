"""The training set: clips rendered, captioned and encoded once, kept under `.training/`.

K clips, F = 16 frames, H = W = 64 pixels.
"""

from __future__ import annotations

import random
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from family import encode
from loop import WORK
from numpy.typing import NDArray

from latentloom.sprites.caption import caption
from latentloom.sprites.render import FPS, render
from latentloom.sprites.scene import Scene, random_scene

NUM_CLIPS: Final = 2500
NUM_FRAMES: Final = 16
# Held-out seeds start here; training seeds are 0..NUM_CLIPS-1.
HELD_OUT: Final = 1_000_000
# One clip in this many is a background alone, so that "nothing" has a meaning.
EMPTY_EVERY: Final = 25
# Clips start anywhere on their path, so that late phases of a motion are seen too.
MAX_START: Final = 48
# Frames of each clip that the upsampler learns from.
PAIR_FRAMES: Final = (0, 9)


def training_scene(index: int) -> Scene:
    """Return the scene of a training clip."""
    return random_scene(index, num_sprites=0 if index % EMPTY_EVERY == 0 else 1)


def training_scenes() -> list[Scene]:
    """Return the scenes of all training clips."""
    return [training_scene(index) for index in range(NUM_CLIPS)]


def training_frames() -> NDArray[np.uint8]:
    """Return all training clips, uint8 `(K, F, 64, 64, 3)`, memory-mapped."""
    path = WORK / "frames.npy"
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        half = WORK / "frames.part.npy"
        shape = (NUM_CLIPS, NUM_FRAMES, 64, 64, 3)
        frames = np.lib.format.open_memmap(half, mode="w+", dtype=np.uint8, shape=shape)
        for index in range(NUM_CLIPS):
            start = int(np.random.default_rng([index, 7]).integers(0, MAX_START))
            frames[index] = render(training_scene(index), NUM_FRAMES, fps=FPS, start=start)
        frames.flush()
        half.rename(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


def training_latents(vae: AutoencoderKL) -> torch.Tensor:
    """Return the latents of all training clips, float16 `(K, F, 4, 16, 16)`."""
    path = WORK / "latents.npy"
    if not path.exists():
        latents = [encode(vae, clip).half().numpy() for clip in training_frames()]
        half = WORK / "latents.part.npy"
        np.save(half, np.stack(latents))
        half.rename(path)
    return torch.from_numpy(np.load(path))


def training_pairs(vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    """Return latents of the same frames at 64 and 128 pixels, `(K, 2, 4, 16, 16)` and `(.., 32, 32)`."""
    path = WORK / "pairs.npz"
    if not path.exists():
        pairs: dict[int, list[NDArray[np.float16]]] = {64: [], 128: []}
        for scene in training_scenes():
            for size, latents in pairs.items():
                clips = [render(scene, 1, size, start=k) for k in PAIR_FRAMES]
                latents.append(encode(vae, np.concatenate(clips)).half().numpy())
        half = WORK / "pairs.part.npz"
        np.savez(half, small=np.stack(pairs[64]), large=np.stack(pairs[128]))
        half.rename(path)
    stored = np.load(path)
    return torch.from_numpy(stored["small"]), torch.from_numpy(stored["large"])


def captions_of(scene: Scene) -> list[str]:
    """Return the ways in which a scene is described in training, the fullest first."""
    return [
        caption(scene),
        caption(scene, motion=False),
        caption(scene, motion=False, background=False),
        caption(scene, style=False, motion=False),
    ]


def random_caption(scene: Scene, rng: random.Random, *, drop: float = 0.1) -> str:
    """Draw one description; with probability `drop` the empty prompt, for guidance."""
    if rng.random() < drop:
        return ""
    return rng.choices(captions_of(scene), weights=[6, 2, 1, 1])[0]
