"""What all stages of a recipe share, and the values that several of them take."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from latentloom.schemas.base import Schema

Kind = Literal["frames", "latents", "noise"]
"""frames: pixels. latents: VAE space, clean. noise: VAE space, inverted, at a timestep."""

PromptName = Literal["source", "target", "instruction", "negative", "none"]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=0, le=100)]
StageName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


def steps_taken(num_inference_steps: int, strength: float) -> int:
    """Return how many steps a strength stands for, rounded down as samplers do."""
    return int(num_inference_steps * strength)


def no_step(num_inference_steps: int, strength: float) -> str:
    """Say what to do about a strength that stands for no step."""
    return (
        f"strength {strength:g} is less than one of the {num_inference_steps} num_inference_steps, so that"
        " nothing would be done; raise either"
    )


class WindowRule(Schema):
    """How a range is cut into the windows that a video model sees together."""

    size: int | None = Field(default=None, ge=1, le=1024)
    """Frames of a window; the model's own length by default."""
    overlap: int | None = Field(default=None, ge=0)
    """Frames that neighbours share; a quarter of the size by default."""
    mode: Literal["independent", "co_denoise", "handoff"] = "independent"
    """independent: every window alone, overlaps cross-faded in latent space. co_denoise: overlaps are
    averaged after every step. handoff: a window goes on from the last frames of the one before; for smooth
    and upsample."""
    weights: Literal["flat", "pyramid", "linear"] = "linear"
    """Weights of the average where windows overlap."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.size is not None and self.overlap is not None and self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be smaller than size {self.size}")
        return self


class StageFields(Schema):
    """Fields of every stage."""

    consumes: ClassVar[tuple[Kind, ...]] = ()
    produces: ClassVar[Kind] = "latents"

    name: StageName = ""
    """Name of the stage, by which overrides and inputs refer to it; its ``op`` by default."""
    inputs: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=8)
    """Names of earlier stages; the stage before by default."""

    @model_validator(mode="before")
    @classmethod
    def _name_defaults_to_op(cls, value: Any) -> Any:
        if isinstance(value, dict) and "name" not in value and "op" in value:
            return {**value, "name": value["op"]}
        return value
