"""Spatial conditions of a model: what a stage may add to a prompt."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from latentloom.schemas.base import Schema


class ControlNetUse(Schema):
    """A ControlNet whose condition is made from the source frames."""

    model: str = "control"
    """Name of the ControlNet among the models."""
    kind: Literal["edges"] = "edges"
    """How the condition is made from a frame."""
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
