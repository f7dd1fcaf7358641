"""The stages of a recipe: a union told apart by ``op``. Each says what it consumes and produces."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from latentloom.schemas.base import Schema
from latentloom.schemas.edits import Img2ImgEdit
from latentloom.schemas.stage import Guidance, Kind, PromptName, StageFields, Steps, WindowRule


class EncodeStage(StageFields):
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
    """Start from latents noised to this step; helps flat pictures, which invert badly."""
    strength: float = Field(default=1.0, gt=0, le=1)
    """Part of the steps that is inverted, and denoised again by the stages after."""
    noise_stream: str | None = Field(default=None, min_length=1, max_length=64)
    """Names the noise that is drawn; the stage's name by default."""
    windows: WindowRule | None = None
    """Window rule of this stage; the recipe's by default."""

    @model_validator(mode="after")
    def _noise_start_leaves_steps(self) -> Self:
        inverted = int(self.num_inference_steps * self.strength)
        if self.noise_start >= inverted:
            raise ValueError(
                f"noise_start {self.noise_start} must be smaller than the {inverted} steps that are"
                f" inverted (num_inference_steps {self.num_inference_steps} x strength"
                f" {self.strength:g})"
            )
        return self


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
    alpha: float = Field(default=0.7, ge=0, le=1)
    """Weight of the video model at step tau, for two sources: 1 is the video model only."""
    tau: int | float = Field(default=0.5, ge=0)
    """First step at which latents are mixed: a step, or a fraction of the steps."""
    schedule: Literal["constant", "toward_video", "toward_image"] = "toward_video"
    """How the weights change after step tau."""
    toward: str | None = None
    """The source that gains weight; the first video or image source by default."""
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

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        names = self.source_names
        if len(set(names)) != len(names):
            raise ValueError(f"sources have equal names {names}; give each a name of its own")
        weights = [source.weight for source in self.sources]
        given = [weight for weight in weights if weight is not None]
        if given and len(given) != len(weights):
            raise ValueError("give every source a weight, or none")
        if given and abs(sum(given) - 1) > 1e-6:
            raise ValueError(f"weights sum to {sum(given):g}, not 1")
        if len(names) > 2 and not given:
            raise ValueError("more than two sources need a weight each; they sum to 1")
        if self.toward is not None and self.schedule == "constant":
            raise ValueError("schedule constant moves no weight; leave out toward, or change it")
        if self.toward is not None and self.toward not in names:
            raise ValueError(f"toward {self.toward!r} is no source; sources are {', '.join(names)}")
        if (
            self.num_inference_steps is not None
            and self.first_mixed_step(self.num_inference_steps) >= self.num_inference_steps
        ):
            raise ValueError(
                f"tau {self.tau} must be smaller than num_inference_steps {self.num_inference_steps}"
            )
        return self

    @property
    def source_names(self) -> list[str]:
        """Return the names of the sources, in order."""
        return [source.name or source.model for source in self.sources]

    def first_mixed_step(self, num_inference_steps: int) -> int:
        """Return tau as a step."""
        if isinstance(self.tau, float) and self.tau <= 1:
            return round(self.tau * num_inference_steps)
        return int(self.tau)


class MixStage(StageFields):
    """Mix two inversions: ``ratio`` of the first input, the rest of the second (BIVDiff)."""

    consumes: ClassVar[tuple[Kind, ...]] = ("noise", "noise")
    produces: ClassVar[Kind] = "noise"
    op: Literal["mix"]
    ratio: float = Field(default=0.5, ge=0, le=1)
    """Weight of the first input."""
    interpolation: Literal["linear", "slerp"] = "linear"
    """How latents are mixed; slerp per frame."""


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


class UpsampleStage(StageFields):
    """Latents of twice the width and height, by a diffusion upsampler."""

    consumes: ClassVar[tuple[Kind, ...]] = ("latents",)
    op: Literal["upsample"]
    model: str = "upsample"
    """Upsampler."""
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


class DecodeStage(StageFields):
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
    "fuse": FuseStage,
    "mix": MixStage,
    "smooth": SmoothStage,
    "upsample": UpsampleStage,
    "decode": DecodeStage,
}
"""Every stage by its tag."""

Stage = Annotated[
    Annotated[EncodeStage, Tag("encode")]
    | Annotated[InvertStage, Tag("invert")]
    | Annotated[Img2ImgEdit, Tag("edit:img2img")]
    | Annotated[FuseStage, Tag("fuse")]
    | Annotated[MixStage, Tag("mix")]
    | Annotated[SmoothStage, Tag("smooth")]
    | Annotated[UpsampleStage, Tag("upsample")]
    | Annotated[DecodeStage, Tag("decode")],
    Discriminator(stage_tag),
]
