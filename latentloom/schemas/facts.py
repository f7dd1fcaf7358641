"""What was looked up for a recipe: everything outside of it that a plan depends on."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from latentloom.schemas.base import Schema
from latentloom.schemas.media import VideoInfo

ModelDtype = Literal["float32", "float16", "bfloat16"]
ModelKind = Literal[
    "image",
    "video",
    "controlnet",
    "t2i_adapter",
    "ip_adapter",
    "upsampler",
    "video_upsampler",
    "interpolator",
    "upscaler",
    "vae",
    "inpaint",
    "instruct",
]


class SourceFacts(Schema):
    """The source video."""

    uri: str
    """Where the recipe says it lies."""
    path: str
    """Local file that is read."""
    digest: str
    """sha256 of the file."""
    info: VideoInfo
    """Frame index, streams and tags."""
    cuts: tuple[int, ...] = ()
    """Frames that begin a scene, where the recipe asks for them."""


class MapFacts(Schema):
    """A side input: a video, an image, or a folder of images."""

    uri: str
    """Where the recipe says it lies."""
    path: str
    """Local file or folder that is read."""
    digest: str
    """sha256 of the file, or over the images of the folder in order."""
    width: int
    """Width in pixels, upright."""
    height: int
    """Height in pixels, upright."""
    num_frames: int
    """Number of frames; the one of an image holds for all frames of the source."""
    info: VideoInfo | None = None
    """Frame index of a video or image; a folder has none."""


class LoraFacts(Schema):
    """A LoRA of a model."""

    file: str
    """Local safetensors file."""
    digest: str
    """sha256 of the file."""
    scale: float
    """How much of it is added."""


class ModelFacts(Schema):
    """What planning needs to know of a model, read from its configuration files."""

    kind: ModelKind
    """Role that the model can play."""
    folder: str
    """Local folder with its files."""
    digest: str
    """sha256 over its configuration, weights and LoRAs; a dependent model's covers its base."""
    dtype: ModelDtype = "float32"
    """Precision that it runs in."""
    parameter_bytes: int
    """Bytes of its weights in memory, in the dtype it runs in."""
    base: str | None = None
    """Name of the model it is built on."""
    loras: tuple[LoraFacts, ...] = ()
    """What is merged into its weights."""
    vae: str | None = None
    """Name of the model whose VAE makes its latents, where the recipe names one."""
    standin: bool = False
    """Cheap arithmetic instead of a network."""
    downscale: int = 8
    """Pixels per latent, each way."""
    latent_channels: int = 4
    """Channels of its latents."""
    in_channels: int = 4
    """Channels that its denoiser takes: its latents, and what lies beside them."""
    scaling_factor: float = 0.18215
    """What latents are multiplied by before a denoiser sees them."""
    shift_factor: float = 0.0
    """What is taken off latents before that."""
    latent_multiple: int = 1
    """Latent height and width must be multiples of this."""
    unet: dict[str, Any] = Field(default_factory=dict)
    """What decides the shapes inside its UNet, for what steers it."""
    steering: dict[str, Any] = Field(default_factory=dict)
    """The same of a ControlNet or T2I-Adapter."""
    sample_length: int | None = None
    """Frames of a window that a video model is made for."""
    max_length: int | None = None
    """Most frames of a window that a video model takes."""
    max_channels: int = 320
    """Widest level of the denoiser; for the memory estimate."""
    vae_channels: int = 128
    """Channels of the VAE at full resolution; for the memory estimate."""
    dropped: dict[str, str] = Field(default_factory=dict)
    """The recipe's texts that are longer than its context, and the ends that are not read."""
    scheduler: dict[str, Any] = Field(default_factory=dict)
    """The part of its scheduler's configuration that sampling depends on."""


class MachineFacts(Schema):
    """Where the work will run."""

    device: Literal["cpu", "cuda"]
    """Device that ``numerics.device`` came to."""
    torch: str
    """Version of torch."""
    av: str
    """Version of PyAV."""
    memory_bytes: int
    """Memory of the machine, or what a control group allows of it."""
    free_memory_bytes: int | None = None
    """What of it was free; for recommendations."""
    gpu_bytes: int | None = None
    """Memory of the GPU, where one does the work."""
    free_disk_bytes: int | None = None
    """Free space of a local store."""


class Facts(Schema):
    """All facts of a plan."""

    source: SourceFacts
    models: dict[str, ModelFacts]
    machine: MachineFacts
    maps: dict[str, MapFacts] = Field(default_factory=dict)
    """Side inputs by name."""
    container_problems: tuple[str, ...] = ()
    """Why the output's container cannot hold what the recipe asks for."""
    measured_bytes: dict[str, int] = Field(default_factory=dict)
    """Peak bytes measured by earlier runs, by calibration key."""
    measured_seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds a source frame measured by earlier runs, by speed key."""
