"""A stage resolved against models and inputs: what ``bind`` makes and ``compile`` cuts into chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from latentloom.schemas.recipe import Recipe
from latentloom.schemas.stage import WindowRule
from latentloom.schemas.stages import InterpolateStage, Stage

Shape = tuple[int, ...]
RedoSet = tuple[int, ...]
"""Indices of the redo ranges in force."""


@dataclass(frozen=True)
class NoiseLevel:
    """Where an inversion ended; whoever denoises from there must agree."""

    num_inference_steps: int
    strength: float
    scheduler: tuple[tuple[str, str], ...]


class LatentSpace(NamedTuple):
    """What latents must share to be mixed, denoised or decoded by a model."""

    downscale: int
    channels: int
    scaling_factor: float
    shift_factor: float

    def __str__(self) -> str:
        """Word it."""
        shift = f", shift factor {self.shift_factor:g}" if self.shift_factor else ""
        return (
            f"factor {self.downscale}, {self.channels} channels,"
            f" scaling factor {self.scaling_factor:g}{shift}"
        )


@dataclass(frozen=True)
class BoundStage:
    """A stage whose defaults are resolved against models and inputs."""

    name: str
    stage: Stage
    variants: Mapping[RedoSet, tuple[Recipe, Stage]]
    inputs: tuple[str, ...]
    frame_shape: Shape
    pixels: tuple[int, int]
    """Height and width of the frames that it stands for."""
    dtype: str | None
    """Dtype of latents; nothing for frames, which have the source's depth."""
    windows: WindowRule | None = None
    space: LatentSpace | None = None
    """Of the latents that it makes; nothing for frames."""
    level: NoiseLevel | None = None
    rate: int = 1
    """Frames for each source frame."""

    @property
    def ahead(self) -> int:
        """Return how many frames after its own a chunk reads, where its shot has them."""
        return 1 if isinstance(self.stage, InterpolateStage) else 0

    @property
    def transient(self) -> bool:
        """Tell whether its frames are deleted behind their last reader."""
        return self.stage.produces == "frames" and not getattr(self.stage, "keep", False)

    @property
    def window_size(self) -> int:
        """Return the source frames of a window."""
        assert self.windows is not None
        assert self.windows.size is not None
        return self.windows.size // self.rate

    @property
    def window_overlap(self) -> int:
        """Return the source frames that neighbours share."""
        assert self.windows is not None
        assert self.windows.overlap is not None
        return self.windows.overlap // self.rate
