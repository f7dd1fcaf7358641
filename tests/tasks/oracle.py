"""FLDM and mixed inversion written out: loops over frames and steps, from the formulas of the papers.

Nothing of ours is used, only the networks themselves. Latents of a frame are ``(C, h, w)``.
FLDM: 2310.16400, sections 3.2 and 3.3. BIVDiff: 2312.02813, section 3.3. DDIM: 2010.02502.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentloom.models.pretrained import library

diffusers, transformers = library("diffusers"), library("transformers")

Frames = list[torch.Tensor]


class Oracle:
    """The tiny models of ``tests.models.tiny`` under SD's noise schedule."""

    def __init__(self, image: Path, adapter: Path, num_steps: int) -> None:
        self.image = diffusers.UNet2DConditionModel.from_pretrained(image / "unet").eval()
        motion = diffusers.MotionAdapter.from_pretrained(adapter)
        self.video = diffusers.UNetMotionModel.from_unet2d(self.image, motion).eval()
        control = image.parent / "control"
        self.control_net = diffusers.ControlNetModel.from_pretrained(control).eval()
        self.encoder = transformers.CLIPTextModel.from_pretrained(image / "text_encoder").eval()
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(image / "tokenizer")
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, 0).tolist()
        self.stride = 1000 // num_steps
        self.timesteps = [1 + self.stride * i for i in reversed(range(num_steps))]

    def embed(self, text: str) -> torch.Tensor:
        tokens = self.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
        states: torch.Tensor = self.encoder(tokens.input_ids)[0]
        return states

    def eps(self, model: str, z: Frames, t: int, text: str) -> Frames:
        """Predict the noise, the image model frame by frame."""
        words = self.embed(text)
        if model == "image":
            return [self.image(frame[None], t, words).sample[0] for frame in z]
        window = torch.stack(z, 1)[None]
        out = self.video(window, t, words.repeat(len(z), 1, 1)).sample
        return list(out[0].unbind(1))

    def steered(self, z: Frames, t: int, text: str, condition: Frames) -> Frames:
        """Predict the noise by the image model, its ControlNet's residuals added."""
        words, found = self.embed(text), []
        for frame, picture in zip(z, condition, strict=True):
            down, mid = self.control_net(
                frame[None], t, words, controlnet_cond=picture[None], return_dict=False
            )
            found += self.image(
                frame[None],
                t,
                words,
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        return found

    def guided(
        self,
        model: str,
        z: Frames,
        t: int,
        texts: tuple[str, str],
        s: float,
        condition: Frames | None = None,
    ) -> Frames:
        cond, uncond = (
            self.eps(model, z, t, text)
            if condition is None
            else self.steered(z, t, text, condition)
            for text in texts
        )
        return [u + s * (c - u) for c, u in zip(cond, uncond, strict=True)]

    def level(self, t: int) -> float:
        return float(self.abar[max(t, 0)])

    def move(self, z: torch.Tensor, eps: torch.Tensor, now: float, then: float) -> torch.Tensor:
        clean = (z - math.sqrt(1 - now) * eps) / math.sqrt(now)
        return math.sqrt(then) * clean + math.sqrt(1 - then) * eps

    def step(self, z: Frames, eps: Frames, t: int) -> Frames:
        now, then = self.level(t), self.level(t - self.stride)
        return [self.move(x, e, now, then) for x, e in zip(z, eps, strict=True)]

    def invert(self, model: str, z: Frames, text: str) -> Frames:
        for t in reversed(self.timesteps):
            eps = self.eps(model, z, t, text)
            now, then = self.level(t - self.stride), self.level(t)
            z = [self.move(x, e, now, then) for x, e in zip(z, eps, strict=True)]
        return z

    def fuse(
        self,
        noise: Frames,
        sources: Sequence[dict[str, Any]],
        rows: Sequence[Sequence[float]],
        tau: int,
        options: dict[str, Any],
    ) -> Frames:
        """Denoise with sources; ``rows`` are their weights from tau on.

        Args:
            noise: Where sources start that have no ``start`` of their own.
            sources: ``{model, texts, scale}``, an image model's with the ``condition`` of a ControlNet.
            rows: A row of weights for each step from tau on.
            tau: First step that is mixed.
            options: Fields of the stage.
        """
        states: list[Frames] = [source.get("start", noise) for source in sources]
        video = next(i for i, source in enumerate(sources) if source["model"] == "video")
        for i, t in enumerate(self.timesteps):
            if i >= tau and options.get("space", "x") != "x":
                states = self._one_step(states, sources, rows[i - tau], i == tau, video, t, options)
                continue
            states = [
                self.step(z, self._predict(s, z, t), t)
                for z, s in zip(states, sources, strict=True)
            ]
            if i >= tau:
                mixed = mix_frames(states, rows[i - tau], video, options)
                states = [mixed for _ in sources]
        return states[0]

    def _predict(self, source: dict[str, Any], z: Frames, t: int) -> Frames:
        condition = source.get("condition")
        return self.guided(source["model"], z, t, source["texts"], source["scale"], condition)

    def _one_step(
        self,
        states: list[Frames],
        sources: Sequence[dict[str, Any]],
        row: Sequence[float],
        first: bool,
        video: int,
        t: int,
        options: dict[str, Any],
    ) -> list[Frames]:
        z = mix_frames(states, row, video, options) if first else states[0]
        found = [self._predict(s, z, t) for s in sources]
        a, b = math.sqrt(self.level(t)), math.sqrt(1 - self.level(t))
        if options["space"] == "x0":
            found = [[(x - b * e) / a for x, e in zip(z, eps, strict=True)] for eps in found]
        mixed = mix_frames(found, row, video, options)
        if options["space"] == "x0":
            mixed = [(x - a * clean) / b for x, clean in zip(z, mixed, strict=True)]
        return [self.step(z, mixed, t) for _ in sources]


def mix_frames(
    states: list[Frames], row: Sequence[float], video: int, options: dict[str, Any]
) -> Frames:
    return [
        mix_frame([state[frame] for state in states], row, video, options)
        for frame in range(len(states[0]))
    ]


def mix_frame(
    parts: list[torch.Tensor], row: Sequence[float], video: int, options: dict[str, Any]
) -> torch.Tensor:
    """Mix the latents of one frame; ``row`` are the weights."""
    if options.get("match_statistics") == "per_frame":
        parts = [matched(part, parts[video]) for part in parts]
    if options.get("interpolation") == "slerp":
        one, other = parts
        cos = float((one * other).sum() / (one.norm() * other.norm()))
        theta = math.acos(cos)
        w = [math.sin(share * theta) / math.sin(theta) for share in row]
        return w[0] * one + w[1] * other
    mixed = sum((w * part for w, part in zip(row, parts, strict=True)), torch.zeros(()))
    if options.get("variance_preserving"):
        rho = torch.corrcoef(torch.stack([part.flatten() for part in parts]))
        shares = torch.tensor(row)
        mixed = mixed / (shares @ rho @ shares).sqrt()
    return mixed


def matched(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Bring each channel of a frame to another's mean and standard deviation."""
    channels = [
        (c - c.mean()) / c.std() * w.std() + w.mean() for c, w in zip(part, wanted, strict=True)
    ]
    return torch.stack(channels)
