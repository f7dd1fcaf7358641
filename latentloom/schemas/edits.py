"""The editors: stages with ``op: edit``, told apart by ``kind``. Each edits frames one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from latentloom.schemas.base import Schema
from latentloom.schemas.conditions import (
    Condition,
    ControlNetUse,
    IPAdapterUse,
    MapName,
    T2IAdapterUse,
)
from latentloom.schemas.stage import (
    Guidance,
    Kind,
    PromptName,
    StageFields,
    Steps,
    no_step,
    steps_taken,
)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | Condition) else value


ControlNets = Annotated[
    tuple[ControlNetUse, ...],
    BeforeValidator(_as_list, json_schema_input_type=ControlNetUse | list[ControlNetUse]),
]
"""One ControlNet, or several whose residuals are added up."""

T2IAdapters = Annotated[
    tuple[T2IAdapterUse, ...],
    BeforeValidator(_as_list, json_schema_input_type=T2IAdapterUse | list[T2IAdapterUse]),
]
"""One T2I-Adapter, or several whose features are added up."""
Border = Annotated[int, Field(ge=0, le=8192)]


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


class NoisedEdit(EditStage):
    """An editor that denoises a part of the steps."""

    strength: float = Field(default=1.0, gt=0, le=1)
    """How far the frame is noised; 1 starts from noise alone, so that only conditions tell of the frame."""

    @model_validator(mode="after")
    def _some_step_is_taken(self) -> Self:
        if not steps_taken(self.num_inference_steps, self.strength):
            raise ValueError(no_step(self.num_inference_steps, self.strength))
        return self


class ReferencedEdit(NoisedEdit):
    """An editor that may be shown a reference image beside its text."""

    ip_adapter: IPAdapterUse | None = None
    """IP-Adapter with its image."""


class Img2ImgEdit(ReferencedEdit):
    """Noise each frame to ``strength``, and denoise it with the prompt (SDEdit)."""

    kind: Literal["img2img"] = "img2img"
    strength: float = Field(default=0.6, gt=0, le=1)
    """How far the frame is noised; 1 forgets it."""


class InstructPix2PixEdit(EditStage):
    """Follow an instruction, with a model that sees the frame it edits (InstructPix2Pix)."""

    kind: Literal["instruct_pix2pix"]
    model: str = "instruct"
    """Instruction model."""
    image_guidance_scale: Guidance = 1.5
    """Guidance toward the frame; ``guidance_scale`` is toward the instruction."""


class LocalBlend(Schema):
    """Where Prompt-to-Prompt may change a frame: where it attends to some words."""

    words: tuple[str, ...] = Field(min_length=1, max_length=16)
    """Words of the source prompt, the target prompt or both."""
    threshold: float = Field(default=0.3, ge=0, lt=1)
    """Attention to the words, as a part of its maximum in the frame, above which a pixel may change."""
    start: float = Field(default=0.2, ge=0, le=1)
    """Part of the steps after which the source's latents stay elsewhere."""


class Prompt2PromptEdit(EditStage):
    """Invert each frame with the source prompt, denoise it with the target prompt under its attention."""

    kind: Literal["prompt2prompt"]
    source_prompt: PromptName = "source"
    """Which prompt describes the frame as it is; it is inverted with it, without guidance."""
    prompt: PromptName | None = "target"
    """Which prompt describes the wanted frame."""
    mode: Literal["replace", "refine"] = "replace"
    """replace: word for word. refine: new words are added to those that both prompts have."""
    cross_replace_steps: float = Field(default=0.8, ge=0, le=1)
    """Part of the steps in which words attract attention where they do in the source."""
    self_replace_steps: float = Field(default=0.4, ge=0, le=1)
    """Part of the steps in which pixels attend to one another as in the source: its layout."""
    local_blend: LocalBlend | None = None
    """Keep the source wherever some words draw no attention."""
    equalizer: dict[str, Annotated[float, Field(ge=-10, le=10)]] = Field(default_factory=dict)
    """Factors of the attention to words of the target prompt, during ``cross_replace_steps``."""


class ControlNetEdit(ReferencedEdit):
    """Make each frame anew under the conditions of one or several ControlNets."""

    kind: Literal["controlnet"]
    controlnet: Annotated[ControlNets, Field(min_length=1, max_length=8)]
    """The ControlNets; residuals of several are added up."""


class T2IAdapterEdit(NoisedEdit):
    """Make each frame anew under the conditions of one or several T2I-Adapters."""

    kind: Literal["t2i_adapter"]
    t2i_adapter: Annotated[T2IAdapters, Field(min_length=1, max_length=8)]
    """The adapters; features of several are added up."""


class InpaintEdit(ReferencedEdit):
    """Make the masked part of each frame anew, by an inpainting model or any image model."""

    kind: Literal["inpaint"]
    mask: MapName
    """Map that is white where pixels are made anew."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """How far the masked part is noised; 1 forgets what was there."""
    controlnet: ControlNets = ()
    """ControlNets whose conditions hold, too."""
    overlay: bool = True
    """Put the frame's own pixels back outside of the mask; without it they have passed the VAE."""


class OutpaintEdit(EditStage):
    """Grow each frame by a border that is made anew; the border is the mask."""

    kind: Literal["outpaint"]
    left: Border = 0
    """Pixels added at the left."""
    right: Border = 0
    """Pixels added at the right."""
    top: Border = 0
    """Pixels added at the top."""
    bottom: Border = 0
    """Pixels added at the bottom."""
    overlay: bool = True
    """Put the frame's own pixels back inside of the border; without it they have passed the VAE."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if not self.left + self.right + self.top + self.bottom:
            raise ValueError("no border: give left, right, top or bottom in pixels")
        return self


class FramesEdit(StageFields):
    """Take frames that were edited elsewhere; no model runs."""

    consumes: ClassVar[tuple[Kind, ...]] = ("frames",)
    produces: ClassVar[Kind] = "frames"
    op: Literal["edit"]
    kind: Literal["frames"]
    map: MapName
    """Map whose pictures replace the frames."""
    keep: bool = False
    """Keep the frames after their last reader."""
