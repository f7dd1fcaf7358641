"""The stages that make one stream of latents of several: ``fuse`` at every step, ``mix`` once."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from latentloom.schemas.base import Schema, Seconds
from latentloom.schemas.conditions import ControlNetUse
from latentloom.schemas.stage import (
    Guidance,
    Kind,
    PromptName,
    StageFields,
    Steps,
    WindowRule,
    steps_taken,
)

DEFAULT_ALPHA = 0.7
"""The default of FLDM's authors."""


def _as_rows(value: Any) -> Any:
    """Take a plain number as a row of one."""
    if not isinstance(value, list | tuple):
        return value
    return [row if isinstance(row, list | tuple) else [row] for row in value]


Weight = Annotated[float, Field(ge=0, le=1)]
WeightRows = Annotated[
    tuple[tuple[Weight, ...], ...],
    BeforeValidator(_as_rows, json_schema_input_type=list[Weight] | list[list[Weight]]),
    Field(min_length=1, max_length=1000),
]


class FuseSource(Schema):
    """One of the models whose latents are fused."""

    name: str | None = Field(default=None, min_length=1)
    """Name for ``toward``; the model's name by default."""
    model: str
    """Image or video model."""
    prompt: PromptName | None = None
    """Which prompt conditions it; an image model takes ``instruction`` where it is set, else ``target``."""
    guidance_scale: Guidance | None = None
    """Classifier-free guidance; the stage's by default."""
    start: Literal["inverted", "noise"] = "inverted"
    """inverted: the input's latents. noise: fresh noise, frame by frame."""
    weight: float | None = Field(default=None, ge=0, le=1)
    """Weight at step tau; needed where there are more than two sources."""
    controlnet: ControlNetUse | None = None
    """Spatial condition."""


class FuseStage(StageFields):
    """Denoise with several models at once and mix their latents after each step (FLDM)."""

    consumes: ClassVar[tuple[Kind, ...]] = ("noise",)
    op: Literal["fuse"]
    sources: tuple[FuseSource, ...] = Field(min_length=2, max_length=8)
    """The models."""
    alpha: float | None = Field(default=None, ge=0, le=1)
    """Weight of the video model at step tau, for two sources: 1 is the video model only. 0.7 by default."""
    tau: int | float = Field(default=0.5, ge=0)
    """First step at which latents are mixed: a step, or a fraction of the steps."""
    schedule: Literal["constant", "toward_video", "toward_image"] | None = None
    """How the weights change after step tau; ``toward_video`` by default."""
    toward: str | None = None
    """The source that gains weight; the first video or image source by default."""
    weights: WeightRows | None = None
    """Weights step by step from tau on, instead of alpha and schedule: the video model's for two sources,
    or rows with a weight for each source."""
    space: Literal["x", "eps", "x0"] = "x"
    """What is mixed: latents after each step, predicted noise, or predicted clean latents."""
    interpolation: Literal["linear", "slerp"] = "linear"
    """How it is mixed; slerp per frame, for two sources."""
    variance_preserving: bool = False
    """Divide by the spread that a linear mix of latents has lost, as measured in each frame."""
    match_statistics: Literal["none", "per_frame"] = "none"
    """per_frame: first bring each source to the video source's mean and deviation, by frame and channel."""
    num_inference_steps: Steps | None = None
    """DDIM steps; the inversion's by default, and equal to them."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """Part of the steps that is denoised; always the inversion's."""
    guidance_scale: Guidance = 7.5
    """Classifier-free guidance of sources that name none."""
    noise_stream: str | None = Field(default=None, min_length=1, max_length=64)
    """Names the noise that is drawn; the stage's name by default."""
    windows: WindowRule | None = None
    """Window rule of this stage; the recipe's by default."""
    checkpoint_every: int = Field(default=10, ge=0, le=1000)
    """Steps between checkpoints inside a window, which a killed run resumes from; 0 keeps none."""

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        given = [source.weight for source in self.sources if source.weight is not None]
        if self.weights is not None:
            named = {"alpha": self.alpha, "schedule": self.schedule, "toward": self.toward}
            taken = [name for name, value in named.items() if value is not None]
            taken += ["the sources' weight"] if given else []
            if taken:
                raise ValueError(f"weights say it all; leave out {' and '.join(taken)}")
            return self._rows_fit(self.weights)
        if given and len(given) != len(self.sources):
            raise ValueError("give every source a weight, or none")
        if given and abs(sum(given) - 1) > 1e-6:
            raise ValueError(f"weights sum to {sum(given):g}, not 1")
        if len(self.sources) > 2 and not given:
            raise ValueError("more than two sources need a weight each; they sum to 1")
        if given and self.alpha is not None:
            raise ValueError("give alpha, or every source a weight, not both")
        if self.toward is not None and self.schedule == "constant":
            raise ValueError("schedule constant moves no weight; leave out toward, or change it")
        return self

    def _rows_fit(self, rows: tuple[tuple[float, ...], ...]) -> Self:
        count = len(self.sources)
        for index, row in enumerate(rows):
            if len(row) == 1 and count != 2:
                raise ValueError(
                    f"weights[{index}] is one number, which is for two sources; give {count}"
                )
            if len(row) not in (1, count):
                raise ValueError(f"weights[{index}] has {len(row)} numbers for {count} sources")
            if len(row) > 1 and abs(sum(row) - 1) > 1e-6:
                raise ValueError(f"weights[{index}] sum to {sum(row):g}, not 1")
        return self

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        names = self.source_names
        if len(set(names)) != len(names):
            raise ValueError(f"sources have equal names {names}; give each a name of its own")
        if self.toward is not None and self.toward not in names:
            raise ValueError(f"toward {self.toward!r} is no source; sources are {', '.join(names)}")
        if self.interpolation == "slerp" and len(names) != 2:
            raise ValueError(f"slerp mixes 2 sources, not {len(names)}; use interpolation: linear")
        return self

    @model_validator(mode="after")
    def _variance_is_lost(self) -> Self:
        if self.variance_preserving and self.interpolation == "slerp":
            raise ValueError("slerp keeps the variance by itself; leave out variance_preserving")
        if self.variance_preserving and self.space != "x":
            raise ValueError(
                f"variance_preserving is for space x, not {self.space}: predictions keep the noise"
                " of their timestep; leave it out"
            )
        return self

    @field_validator("tau")
    @classmethod
    def _tau_is_a_step_or_a_fraction(cls, tau: int | float) -> int | float:
        if tau > 1 and tau != int(tau):
            raise ValueError(
                f"{tau:g} is no step: give a whole number, such as {int(tau)}, or a fraction of the"
                " steps, up to 1.0"
            )
        return tau

    @model_validator(mode="after")
    def _some_step_is_mixed(self) -> Self:
        fault = self.steps_fault(self.num_inference_steps) if self.num_inference_steps else None
        if fault is not None:
            raise ValueError(fault)
        return self

    def steps_fault(self, num_inference_steps: int) -> str | None:
        """Say why tau or weights do not fit a number of steps, if they do not."""
        tau = self.first_mixed_step(num_inference_steps)
        if tau >= num_inference_steps:
            return f"tau {self.tau} must be smaller than num_inference_steps {num_inference_steps}"
        left = num_inference_steps - tau
        if self.weights is not None and len(self.weights) != left:
            return (
                f"weights has {len(self.weights)} entries for the {left} steps from tau {tau} to"
                f" {num_inference_steps}; give one for each"
            )
        return None

    @property
    def source_names(self) -> list[str]:
        """Return the names of the sources, in order."""
        return [source.name or source.model for source in self.sources]

    @property
    def first_alpha(self) -> float | None:
        """Return the weight of the video model at step tau, where no other field says it."""
        if self.weights is not None or self.sources[0].weight is not None:
            return None
        return DEFAULT_ALPHA if self.alpha is None else self.alpha

    @property
    def moves(self) -> Literal["constant", "toward_video", "toward_image"]:
        """Return how the weights change."""
        return "constant" if self.weights is not None else self.schedule or "toward_video"

    def first_mixed_step(self, num_inference_steps: int) -> int:
        """Return tau as a step."""
        if isinstance(self.tau, float) and self.tau <= 1:
            return round(self.tau * num_inference_steps)
        return int(self.tau)

    def checkpoint_steps(self) -> tuple[int, ...]:
        """Return after how many steps of a window its states are saved; the number of steps is resolved."""
        if not self.checkpoint_every or self.num_inference_steps is None:
            return ()
        strength = 1.0 if self.strength is None else self.strength
        start = self.num_inference_steps - steps_taken(self.num_inference_steps, strength)
        saved = range(self.checkpoint_every, self.num_inference_steps, self.checkpoint_every)
        return tuple(step for step in saved if step > start)


class RatioKey(Schema):
    """The ratio of a mix at one moment."""

    time: Seconds = Field(ge=0)
    """Moment in the source."""
    ratio: float = Field(ge=0, le=1)
    """Weight of the first input then."""


def _as_keys(value: Any) -> Any:
    """Take a plain number as one ratio for the whole video."""
    return value if isinstance(value, list | tuple) else [{"time": 0, "ratio": value}]


class MixStage(StageFields):
    """Mix two inversions: ``ratio`` of the first input, the rest of the second (BIVDiff)."""

    consumes: ClassVar[tuple[Kind, ...]] = ("noise", "noise")
    produces: ClassVar[Kind] = "noise"
    op: Literal["mix"]
    ratio: Annotated[
        tuple[RatioKey, ...],
        BeforeValidator(_as_keys, json_schema_input_type=Weight | list[RatioKey]),
        Field(min_length=1, max_length=1000),
    ] = (RatioKey(time=0, ratio=0.5),)
    """Weight of the first input: a number, or a list of ``{time, ratio}`` between which it changes
    linearly from frame to frame."""
    interpolation: Literal["linear", "slerp"] = "linear"
    """How latents are mixed; slerp per frame."""
    variance_preserving: bool = False
    """Divide by the spread that a linear mix has lost, as measured in each frame."""

    @model_validator(mode="after")
    def _keys_follow_one_another(self) -> Self:
        for before, after in pairwise(self.ratio):
            if after.time <= before.time:
                raise ValueError(
                    f"ratio: {after.time:g} s must lie after {before.time:g} s; sort the list by time"
                )
        if self.variance_preserving and self.interpolation == "slerp":
            raise ValueError("slerp keeps the variance by itself; leave out variance_preserving")
        return self
