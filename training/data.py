"""The training set, rendered once and kept under `.training/`, and what all scripts share around it.

Shapes: K clips, F = 16 frames, H = W = 64 pixels.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextModel

from latentloom.sprites.caption import caption
from latentloom.sprites.render import FPS, render
from latentloom.sprites.scene import Scene, random_scene

HERE: Final = Path(__file__).resolve().parent
WORK: Final = HERE.parent / ".training"
EMBEDDED: Final = HERE.parent / "latentloom" / "models" / "embedded" / "sprites"

NUM_CLIPS: Final = 2500
NUM_FRAMES: Final = 16
# Held-out seeds start here; training seeds are 0..NUM_CLIPS-1.
HELD_OUT: Final = 1_000_000
# One clip in this many is a background alone, so that "nothing" has a meaning.
EMPTY_EVERY: Final = 25


def training_scene(index: int) -> Scene:
    """Return the scene of a training clip."""
    return random_scene(index, num_sprites=0 if index % EMPTY_EVERY == 0 else 1)


def training_frames() -> NDArray[np.uint8]:
    """Return all training clips, uint8 `(K, F, 64, 64, 3)`, memory-mapped."""
    path = WORK / "frames.npy"
    if not path.exists():
        WORK.mkdir(exist_ok=True)
        half = WORK / "frames.part.npy"
        shape = (NUM_CLIPS, NUM_FRAMES, 64, 64, 3)
        frames = np.lib.format.open_memmap(half, mode="w+", dtype=np.uint8, shape=shape)
        for index in range(NUM_CLIPS):
            # Clips start anywhere on their path, so that late phases of a motion are seen too.
            start = int(np.random.default_rng([index, 7]).integers(0, 48))
            frames[index] = render(training_scene(index), NUM_FRAMES, fps=FPS, start=start)
        frames.flush()
        half.rename(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]


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


@dataclasses.dataclass
class Clock:
    """How far a training is: by steps, or by minutes where those run out first."""

    steps: int
    minutes: float
    warmup: int = 100
    step: int = 0
    spent: float = 0.0
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def progress(self) -> float:
        """The finished fraction, 0 to 1."""
        minutes = (self.spent + time.monotonic() - self.began) / 60
        return max(self.step / self.steps, minutes / self.minutes)

    def rate(self, peak: float) -> float:
        """Return the learning rate: linear warm-up, then a cosine down to 2 % of the peak."""
        warm = min(1.0, (self.step + 1) / self.warmup)
        return peak * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(1.0, self.progress))))

    @property
    def seconds(self) -> float:
        """Seconds spent so far, earlier sessions included."""
        return self.spent + time.monotonic() - self.began


class Average:
    """Exponential moving average of parameters, by name."""

    def __init__(self, modules: dict[str, torch.nn.Module], decay: float) -> None:
        self.modules, self.decay, self.num = modules, decay, 0
        self.shadow = {k: v.detach().clone() for k, v in self._named()}

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return [
            (f"{name}/{key}", value)
            for name, module in self.modules.items()
            for key, value in module.named_parameters()
            if value.requires_grad
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the parameters; quickly at first."""
        self.num += 1
        decay = min(self.decay, (1 + self.num) / (10 + self.num))
        for key, value in self._named():
            self.shadow[key].lerp_(value, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; a second call undoes it."""
        for key, value in self._named():
            kept = value.clone()
            value.copy_(self.shadow[key])
            self.shadow[key].copy_(kept)


class Log:
    """A CSV of the training's losses under `training/logs/`, one row every few steps."""

    def __init__(self, name: str, fields: list[str], *, resumed: bool) -> None:
        path = HERE / "logs" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        self.file = path.open("a" if resumed else "w", newline="")
        self.writer = csv.writer(self.file)
        if not resumed:
            self.writer.writerow(["step", "seconds", *fields])

    def row(self, clock: Clock, *values: float) -> None:
        """Append a row and show it."""
        numbers = [f"{value:.5f}" for value in values]
        self.writer.writerow([clock.step, f"{clock.seconds:.0f}", *numbers])
        self.file.flush()
        print(clock.step, f"{clock.seconds:.0f}s", *numbers, flush=True)


def load_config(name: str) -> dict[str, Any]:
    """Return a script's settings from `training/configs/<name>.json`."""
    return dict(json.loads((HERE / "configs" / f"{name}.json").read_text()))


def save_checkpoint(name: str, state: dict[str, Any]) -> None:
    """Replace a checkpoint in one rename."""
    WORK.mkdir(exist_ok=True)
    half = WORK / f"{name}.part"
    torch.save(state, half)
    half.rename(WORK / f"{name}.pt")


def load_checkpoint(name: str) -> dict[str, Any] | None:
    """Return the last checkpoint, or None to start from scratch."""
    path = WORK / f"{name}.pt"
    return torch.load(path, weights_only=False) if path.exists() else None


def export(part: str, save: Any) -> None:
    """Replace a folder of the embedded family by what `save(folder)` writes."""
    target = EMBEDDED / part
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    save(half)
    half.chmod(0o755)
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    half.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def pixels(frames: NDArray[np.uint8]) -> torch.Tensor:
    """Return frames `(B, H, W, 3)` as a float tensor `(B, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1




def frozen_vae() -> AutoencoderKL:
    """Return the exported VAE."""
    folder = EMBEDDED / "image" / "vae"
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, frames: NDArray[np.uint8]) -> torch.Tensor:
    """Return normalised latents `(B, 4, H/4, W/4)` of frames `(B, H, W, 3)`: the posterior's mean."""
    mean, std = statistics(vae)
    parts = pixels(frames).split(32)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in parts])
    return (latents - mean) / std


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Return the frames of normalised latents."""
    mean, std = statistics(vae)
    parts = (latents * std + mean).split(32)
    images = torch.cat([vae.decode(part).sample for part in parts]).clamp(-1, 1)
    return ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def statistics(vae: AutoencoderKL) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and spread of the latents' channels, shaped to broadcast."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)
    return mean, torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)


def training_latents() -> torch.Tensor:
    """Return the latents of all training clips, float16 `(K, F, 4, 16, 16)`, encoded once."""
    path = WORK / "latents.npy"
    if not path.exists():
        vae, frames = frozen_vae(), training_frames()
        latents = [encode(vae, clip).half().numpy() for clip in frames]
        half = WORK / "latents.part.npy"
        np.save(half, np.stack(latents))
        half.rename(path)
    return torch.from_numpy(np.load(path))


def export_model(part: str, model: Any) -> None:
    """Write a model as float16, and leave it in float32."""
    half = copy.deepcopy(model).half()
    export(part, half.save_pretrained)


def write_text(part: Path, content: str) -> None:
    """Replace one file of the embedded family."""
    path = EMBEDDED / part
    half = path.with_name(f".{path.name}.part")
    half.write_text(content)
    half.rename(path)


def checkpoint(
    name: str,
    modules: dict[str, torch.nn.Module],
    average: Average,
    optimiser: torch.optim.Optimizer,
    clock: Clock,
) -> None:
    """Save everything that a training needs to go on."""
    save_checkpoint(
        name,
        {
            "modules": {key: module.state_dict() for key, module in modules.items()},
            "average": (average.shadow, average.num),
            "optimiser": optimiser.state_dict(),
            "clock": (clock.step, clock.seconds),
        },
    )


def resume(
    name: str,
    modules: dict[str, torch.nn.Module],
    average: Average,
    optimiser: torch.optim.Optimizer,
    clock: Clock,
) -> bool:
    """Go on from a checkpoint, if there is one; say whether there was."""
    state = load_checkpoint(name)
    if state is None:
        return False
    for key, module in modules.items():
        module.load_state_dict(state["modules"][key])
    average.shadow, average.num = state["average"]
    optimiser.load_state_dict(state["optimiser"])
    clock.step, clock.spent = state["clock"]
    return True


def frozen_image_model() -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Return the exported text encoder and UNet, in float32."""
    folder = EMBEDDED / "image"
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return encoder.eval().requires_grad_(False), unet.eval().requires_grad_(False)
