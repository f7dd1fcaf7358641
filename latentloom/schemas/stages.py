"""The stages of a recipe: a union told apart by ``op``. Each says what it consumes and produces."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from latentloom.schemas.edits import (
    ControlNetEdit,
    FramesEdit,
    Img2ImgEdit,
    InpaintEdit,
    InstructPix2PixEdit,
    OutpaintEdit,
    Prompt2PromptEdit,
    T2IAdapterEdit,
)
from latentloom.schemas.fusion import FuseStage, MixStage
from latentloom.schemas.stage import (
    Guidance,
    Kind,
    PromptName,
    StageFields,
    Steps,
    WindowRule,
    no_step,
    steps_taken,
)
from latentloom.schemas.tiling import Tiling


class TiledStage(StageFields):
    """Fields of stages that can take frames tile by tile."""

    model: str
    tiling: Tiling | None = None
    """Cut frames into tiles, so that memory follows the tile and not the frame; no tiles by default."""


class EncodeStage(TiledStage):
    """Frames to latents, by the VAE of an image model (posterior mean)."""

    consumes: ClassVar[tuple[Kind, ...]] = ("frames",)
    op: Literal["encode"]
    model: str = "image"
    """Model whose VAE encodes."""


class InvertStage(StageFields):
    """Clean latents to noise, by DDIM inversion."""

    consumes: ClassVar[tuple[Kind, ...]] = ("latents",)
    produces: ClassVar[Kind] = "noise"
    op: Literal["invert"]
    model: str = "video"
    """An image model inverts frame by frame, a video model window by window."""
    num_inference_steps: Steps = 40
    """DDIM steps."""
    guidance_scale: Guidance = 1.0
    """Classifier-free guidance; 1 is none."""
    prompt: PromptName = "source"
    """Which prompt conditions it."""
    noise_start: int = Field(default=0, ge=0)
    """Start from latents noised to this step, which helps flat pictures, for they invert badly; all of the
    steps that are inverted: noise the latents, and invert nothing."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """Part of the steps that is inverted, and denoised again by the stages after."""
    noise_stream: str | None = Field(default=None, min_length=1, max_length=64)
    """Names the noise that is drawn; the stage's name by default."""
    windows: WindowRule | None = None
    """Window rule of this stage; the recipe's by default."""

    @model_validator(mode="after")
    def _noise_start_is_on_the_way(self) -> Self:
        inverted = steps_taken(self.num_inference_steps, self.strength)
        if not inverted:
            raise ValueError(no_step(self.num_inference_steps, self.strength))
        if self.noise_start > inverted:
            raise ValueError(
                f"noise_start {self.noise_start} is more than the {inverted} steps that are inverted"
                f" (num_inference_steps {self.num_inference_steps} x strength {self.strength:g});"
                f" {inverted} noises the latents and inverts nothing"
            )
        return self

    @property
    def asks_model(self) -> bool:
        """Tell whether a step is left to invert after ``noise_start``."""
        return self.noise_start < steps_taken(self.num_inference_steps, self.strength)


class SmoothStage(StageFields):
    """Denoise with a video model."""

    consumes: ClassVar[tuple[Kind, ...]] = ("noise",)
    op: Literal["smooth"]
    model: str = "video"
    """Video model."""
    num_inference_steps: Steps | None = None
    """DDIM steps; the inversion's by default, and equal to them."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """Part of the steps that is denoised; always the inversion's."""
    guidance_scale: Guidance = 7.5
    """Classifier-free guidance."""
    prompt: PromptName = "target"
    """Which prompt conditions it."""
    windows: WindowRule | None = None
    """Window rule of this stage; the recipe's by default."""


class UpsampleStage(TiledStage):
    """Latents of twice the width and height, by a diffusion upsampler."""

    consumes: ClassVar[tuple[Kind, ...]] = ("latents",)
    op: Literal["upsample"]
    model: str = "upsample"
    """An upsampler works frame by frame, one with temporal layers window by window."""
    num_inference_steps: Steps = 20
    """DDIM steps."""
    guidance_scale: Guidance = 1.0
    """Classifier-free guidance."""
    noise_level: int = Field(default=0, ge=0)
    """Noise added to the low-resolution latents; the model is told."""
    noise_stream: str | None = Field(default=None, min_length=1, max_length=64)
    """Names the noise that is drawn; the stage's name by default."""
    prompt: PromptName = "target"
    """Which prompt conditions it."""
    windows: WindowRule | None = None
    """Window rule of an upsampler with temporal layers; the recipe's by default."""


class InterpolateStage(StageFields):
    """Four frames for each one, in the same time: three new ones between every two neighbours."""

    consumes: ClassVar[tuple[Kind, ...]] = ("latents",)
    factor: ClassVar[int] = 4
    op: Literal["interpolate"]
    model: str = "interpolate"
    """Interpolation model."""
    num_inference_steps: Steps = 1
    """Steps from the cross-fade of two frames to what is between them."""
    prompt: PromptName = "target"
    """Which prompt conditions it."""


class UpscaleStage(TiledStage):
    """Frames of four times the width and height, by the x4 upscaler of Stable Diffusion."""

    consumes: ClassVar[tuple[Kind, ...]] = ("frames",)
    produces: ClassVar[Kind] = "frames"
    op: Literal["upscale"]
    model: str = "upscale"
    """Upscaler."""
    num_inference_steps: Steps = 20
    """DDIM steps."""
    guidance_scale: Guidance = 9.0
    """Classifier-free guidance."""
    noise_level: int = Field(default=20, ge=0, le=999)
    """Noise added to the small frames, which hides their faults; the model is told."""
    noise_stream: str | None = Field(default=None, min_length=1, max_length=64)
    """Names the noise that is drawn; the stage's name by default."""
    prompt: PromptName = "target"
    """Which prompt conditions it."""
    keep: bool = False
    """Keep the frames after their last reader."""


class DecodeStage(TiledStage):
    """Latents to frames, by the VAE of an image model."""

    consumes: ClassVar[tuple[Kind, ...]] = ("latents",)
    produces: ClassVar[Kind] = "frames"
    op: Literal["decode"]
    model: str = "image"
    """Model whose VAE decodes."""
    keep: bool = False
    """Keep the frames after their last reader."""


def stage_tag(value: Any) -> str:
    """Return what tells stages apart: the op, and for editors their kind too."""
    if isinstance(value, StageFields):
        value = {"op": getattr(value, "op", ""), "kind": getattr(value, "kind", None)}
    if not isinstance(value, dict):
        return ""
    op = str(value.get("op", ""))
    return f"edit:{value.get('kind', 'img2img')}" if op == "edit" else op


STAGES: dict[str, type[StageFields]] = {
    "encode": EncodeStage,
    "invert": InvertStage,
    "edit:img2img": Img2ImgEdit,
    "edit:controlnet": ControlNetEdit,
    "edit:t2i_adapter": T2IAdapterEdit,
    "edit:inpaint": InpaintEdit,
    "edit:outpaint": OutpaintEdit,
    "edit:frames": FramesEdit,
    "edit:instruct_pix2pix": InstructPix2PixEdit,
    "edit:prompt2prompt": Prompt2PromptEdit,
    "fuse": FuseStage,
    "mix": MixStage,
    "smooth": SmoothStage,
    "upsample": UpsampleStage,
    "interpolate": InterpolateStage,
    "upscale": UpscaleStage,
    "decode": DecodeStage,
}
"""Every stage by its tag."""

Stage = Annotated[
    Annotated[EncodeStage, Tag("encode")]
    | Annotated[InvertStage, Tag("invert")]
    | Annotated[Img2ImgEdit, Tag("edit:img2img")]
    | Annotated[ControlNetEdit, Tag("edit:controlnet")]
    | Annotated[T2IAdapterEdit, Tag("edit:t2i_adapter")]
    | Annotated[InpaintEdit, Tag("edit:inpaint")]
    | Annotated[OutpaintEdit, Tag("edit:outpaint")]
    | Annotated[FramesEdit, Tag("edit:frames")]
    | Annotated[InstructPix2PixEdit, Tag("edit:instruct_pix2pix")]
    | Annotated[Prompt2PromptEdit, Tag("edit:prompt2prompt")]
    | Annotated[FuseStage, Tag("fuse")]
    | Annotated[MixStage, Tag("mix")]
    | Annotated[SmoothStage, Tag("smooth")]
    | Annotated[UpsampleStage, Tag("upsample")]
    | Annotated[InterpolateStage, Tag("interpolate")]
    | Annotated[UpscaleStage, Tag("upscale")]
    | Annotated[DecodeStage, Tag("decode")],
    Discriminator(stage_tag),
]
