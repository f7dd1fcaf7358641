"""The editors: stages with ``op: edit``, told apart by ``kind``. Each edits frames one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from latentloom.schemas.conditions import ControlNetUse
from latentloom.schemas.stage import Guidance, Kind, PromptName, StageFields, Steps


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | ControlNetUse) else value


ControlNets = Annotated[
    tuple[ControlNetUse, ...],
    BeforeValidator(_as_list, json_schema_input_type=ControlNetUse | list[ControlNetUse]),
]
"""One ControlNet, or several whose residuals are added up."""


class EditStage(StageFields):
    """Frames to frames, each by itself, by an image model."""

    consumes: ClassVar[tuple[Kind, ...]] = ("frames",)
    produces: ClassVar[Kind] = "frames"
    op: Literal["edit"]
    kind: str
    model: str = "image"
    """Image model."""
    num_inference_steps: Steps = 40
    """DDIM steps of the full schedule."""
    noise_stream: str | None = Field(default=None, min_length=1, max_length=64)
    """Names the noise that is drawn; the stage's name by default."""
    guidance_scale: Guidance = 7.5
    """Classifier-free guidance."""
    prompt: PromptName | None = None
    """Which prompt conditions it; ``instruction`` where it is set, else ``target``."""
    keep: bool = False
    """Keep the frames after their last reader."""


class Img2ImgEdit(EditStage):
    """Noise each frame to ``strength``, and denoise it with the prompt (SDEdit)."""

    kind: Literal["img2img"] = "img2img"
    strength: float = Field(default=0.6, gt=0, le=1)
    """How far the frame is noised; 1 forgets it."""


class ControlNetEdit(EditStage):
    """Make each frame anew under the conditions of one or several ControlNets."""

    kind: Literal["controlnet"]
    controlnet: Annotated[ControlNets, Field(min_length=1, max_length=8)]
    """The ControlNets; residuals of several are added up."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """How far the frame is noised; 1 starts from noise alone, so that only conditions tell of the frame."""
