"""A family that costs next to nothing, for memory and overhead benchmarks and for kill tests.

Not a model of anything, but its results depend on everything that a real one's do: pixels, text,
timestep and, in the windowed denoiser, neighbouring frames.
F frames, H x W pixels, latents `(F, 4, H/8, W/8)`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any, Final

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import Prediction
from latentloom.models.image import refuse_control
from latentloom.models.pretrained import read_config

DOWNSCALE: Final = 8
TOKENS: Final = 2
WIDTH: Final = 8
# Rows: latent channels; columns: red, green, blue; orthonormal, so that the transpose undoes it.
_COLOURS: Final = torch.tensor(
    [[0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5], [0.5, -0.5, -0.5]]
)
_STRENGTH: Final = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class StandInVAE:
    """Mean of 8 x 8 pixels and a fixed map of three colours to four channels; back by repeating."""

    device: torch.device
    scaling_factor: float = 1.0

    downscale = DOWNSCALE
    channels = 4

    def encode_latents(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode frames; see `VAE.encode_latents`.

        Raises:
            ModelError: If a side is no multiple of 8.
        """
        height, width = frames.shape[-2:]
        if height % DOWNSCALE or width % DOWNSCALE:
            raise ModelError(f"frames of {width}x{height} do not divide by {DOWNSCALE}")
        small = torch.nn.functional.avg_pool2d(frames.to(self.device), DOWNSCALE)
        return _mapped(small, _COLOURS) * self.scaling_factor

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents; see `VAE.decode_latents`."""
        small = _mapped(latents.to(self.device), _COLOURS.T) / self.scaling_factor
        small = small.clamp(-1, 1)
        return torch.nn.functional.interpolate(small, scale_factor=DOWNSCALE, mode="nearest")


@dataclasses.dataclass(frozen=True, eq=False)
class StandInText:
    """Embeddings from a prompt's hash."""

    device: torch.device

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Return `(len(prompts), 2, 8)` in [-1, 1)."""
        digests = [hashlib.sha256(prompt.encode()).digest()[: TOKENS * WIDTH] for prompt in prompts]
        numbers = torch.tensor([list(digest) for digest in digests]) / 128 - 1
        return numbers.view(-1, TOKENS, WIDTH).to(self.device)

    def dropped(self, prompt: str) -> str:
        """Return "": a hash reads everything."""
        return prompt[len(prompt) :]


@dataclasses.dataclass(frozen=True, eq=False)
class StandInDenoiser:
    """The best guess for standard normal latents, and a little of text and neighbours."""

    windowed: bool
    sample_length: int
    prediction: Prediction
    device: torch.device

    channels = 4

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise; see `Denoiser.predict`.

        Raises:
            ModelError: If there is a control, or the window is too long.
        """
        refuse_control(control)
        if self.windowed and len(latents) > self.sample_length:
            raise ModelError(
                f"a window of {len(latents)} frames is longer than {self.sample_length}; "
                "lower windows.size"
            )
        noise = math.sqrt(1 - float(self.prediction.alphas_cumprod[timestep]))
        gain, bias = text.mean((1, 2)).view(-1, 1, 1, 1), text.mean(1)[:, :4, None, None]
        eps = noise * latents + _STRENGTH * torch.tanh(bias + (1 + gain) * latents)
        if self.windowed and len(latents) > 1:
            before = torch.cat([latents[:1], latents[:-1]])
            after = torch.cat([latents[1:], latents[-1:]])
            eps = eps + _STRENGTH * (latents - (before + after) / 2)
        return eps


def load_vae(folder: Path, device: str) -> StandInVAE:
    """Return the stand-in VAE that a folder describes."""
    config = read_config(folder / "config.json")
    return StandInVAE(torch.device(device), float(config["scaling_factor"]))


def load_text(device: str) -> StandInText:
    """Return the stand-in text encoder."""
    return StandInText(torch.device(device))


def load_denoiser(folder: Path, prediction: Prediction, device: str) -> StandInDenoiser:
    """Return the stand-in denoiser that a folder describes."""
    config: dict[str, Any] = read_config(folder / "config.json")
    windowed = bool(config["windowed"])
    length = int(config["motion_max_seq_length"]) if windowed else 1
    return StandInDenoiser(windowed, length, prediction, torch.device(device))


def _mapped(tensor: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Map the channels of `(F, c, h, w)`; one by one, so that chunking changes no bit."""
    rows = []
    for row in matrix.tolist():
        channel = row[0] * tensor[:, 0]
        for weight, source in zip(row[1:], tensor[:, 1:].unbind(1), strict=True):
            channel = channel + weight * source
        rows.append(channel)
    return torch.stack(rows, 1)
