"""What steers a denoiser besides text: spatial conditions of single frames."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from latentloom.schemas.base import Schema

MapName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
ConditionKind = Literal["edges", "canny", "depth", "pose", "segmentation", "sketch"]
MADE_KINDS: Final = ("edges", "canny")
"""Kinds that are made from the frames where no map holds them."""
LOW_THRESHOLD: Final = 100
HIGH_THRESHOLD: Final = 200
"""What the ControlNets on Canny edges are shown in diffusers' documentation."""


class MapInput(Schema):
    """A side input, aligned to the frames of the source: a condition, a mask or edited frames."""

    uri: str = Field(min_length=1)
    """A video or a folder of images, both with as many frames as the source; or one image for all frames."""


class Condition(Schema):
    """A picture for each frame that says what is where."""

    model: str
    """Name, among the models, of the one that reads it."""
    kind: ConditionKind = "edges"
    """What it shows. ``edges`` and ``canny`` are made from the frames where no map is named."""
    map: MapName | None = None
    """Map that holds it, as an annotator made it."""
    low_threshold: int = Field(default=LOW_THRESHOLD, ge=0)
    """For ``canny`` that is made from the frames: gradient that goes on with an edge, as in OpenCV."""
    high_threshold: int = Field(default=HIGH_THRESHOLD, gt=0)
    """For ``canny`` that is made from the frames: gradient that begins an edge."""

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        if self.kind not in MADE_KINDS and self.map is None:
            raise ValueError(
                f"kind {self.kind} is not made from frames here ({' and '.join(MADE_KINDS)} are);"
                " name a map that holds it"
            )
        return self

    @model_validator(mode="after")
    def _thresholds_hold(self) -> Self:
        thresholds = (self.low_threshold, self.high_threshold)
        makes_canny = self.kind == "canny" and self.map is None
        if not makes_canny and thresholds != (LOW_THRESHOLD, HIGH_THRESHOLD):
            raise ValueError(
                "low_threshold and high_threshold are for kind canny made from the frames;"
                " remove them, or set kind: canny and no map"
            )
        if self.low_threshold >= self.high_threshold:
            raise ValueError(
                f"low_threshold {self.low_threshold} must be smaller than"
                f" high_threshold {self.high_threshold}"
            )
        return self


class ControlNetUse(Condition):
    """A ControlNet and its condition."""

    model: str = "control"
    """Name of the ControlNet among the models."""
    controlnet_conditioning_scale: float = Field(default=1.0, ge=0, le=10)
    """Factor of its residuals."""
    control_guidance_start: float = Field(default=0.0, ge=0, lt=1)
    """Part of the steps after which it begins."""
    control_guidance_end: float = Field(default=1.0, gt=0, le=1)
    """Part of the steps after which it ends."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> Self:
        if self.control_guidance_start >= self.control_guidance_end:
            raise ValueError("control_guidance_start must be smaller than control_guidance_end")
        return self


class T2IAdapterUse(Condition):
    """A T2I-Adapter and its condition."""

    model: str = "t2i_adapter"
    """Name of the T2I-Adapter among the models."""
    adapter_conditioning_scale: float = Field(default=1.0, ge=0, le=10)
    """Factor of its features."""
    adapter_conditioning_factor: float = Field(default=1.0, gt=0, le=1)
    """Part of the steps after which it ends."""


class IPAdapterUse(Schema):
    """An IP-Adapter and the image whose content or style it carries over."""

    model: str = "ip_adapter"
    """Name of the IP-Adapter among the models."""
    image: MapName
    """Map that holds the image, of any shape; the middle square is seen."""
    ip_adapter_scale: float = Field(default=1.0, ge=0, le=10)
    """Factor of what attention to the image adds."""
