"""The recipe, version 1: what a person writes. Names are diffusers' wherever it has one.

``load.py`` reads one from YAML and reports every fault with its line. Nothing here looks anything up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from latentloom.schemas.base import Schema, Seconds
from latentloom.schemas.conditions import MapInput, MapName
from latentloom.schemas.stage import WindowRule
from latentloom.schemas.stages import Stage

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
IMPLICIT_STAGES = ("decode_video", "encode_video")
MAX_STAGES = 64


class Size(Schema):
    """The size at which the video is processed."""

    width: int = Field(ge=16, le=16384)
    """Width in pixels."""
    height: int = Field(ge=16, le=16384)
    """Height in pixels."""
    fit: Literal["cover", "contain", "stretch"] = "cover"
    """cover crops, contain pads, stretch distorts."""


class Source(Schema):
    """The video to edit and the part of it that is wanted."""

    uri: str = Field(min_length=1)
    """Path or URI of the video."""
    start: Seconds = Field(default=0.0, ge=0)
    """First moment, in seconds or HH:MM:SS.mmm."""
    end: Seconds | None = Field(default=None, gt=0)
    """Last moment (not included); the whole video by default."""
    duration: Seconds | None = Field(default=None, gt=0)
    """Length of the part; instead of ``end``."""
    size: Literal["source"] | Size = "source"
    """``source`` keeps the video's own size."""
    video_stream: int | None = Field(default=None, ge=0)
    """Index of the stream in the container; the first one that is not a cover picture by default."""
    interlaced: Literal["deinterlace", "refuse", "ignore"] = "deinterlace"
    """What to do with interlaced video."""
    on_damage: Literal["error", "hold"] = "error"
    """``hold`` repeats the last good frame where the file decodes to fewer frames than it lists."""

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.end is not None and self.duration is not None:
            raise ValueError("give end or duration, not both")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end {self.end:g} s must lie after start {self.start:g} s")
        return self

    @property
    def stop_seconds(self) -> float | None:
        """Return the end of the cut in seconds, or nothing for the end of the video."""
        return self.start + self.duration if self.duration is not None else self.end


def _one_place(path: str | None, repo_id: str | None) -> None:
    if (path is None) == (repo_id is None):
        raise ValueError("give exactly one of path and repo_id")


class LoraSpec(Schema):
    """A LoRA: low-rank changes of a model's weights."""

    path: str | None = None
    """A safetensors file, or a folder with one."""
    repo_id: str | None = None
    """Repository on the hub; instead of ``path``."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    subfolder: str | None = None
    """Folder inside the repository or path."""
    weight_name: str | None = Field(default=None, pattern=r"^[^/\\]+\.safetensors$")
    """Name of the file; needed where a folder holds several."""
    scale: float = Field(default=1.0, ge=-10, le=10)
    """How much of it is added to the weights: 0 is nothing, 1 is as trained."""

    @model_validator(mode="after")
    def _lies_in_one_place(self) -> Self:
        _one_place(self.path, self.repo_id)
        return self


class SchedulerSpec(Schema):
    """Fields of a scheduler's configuration, under diffusers' names, that replace the model's own."""

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    """How noise grows; Stable Diffusion was trained with scaled_linear, AnimateDiff with linear."""
    beta_start: float | None = Field(default=None, gt=0, lt=1)
    """First beta."""
    beta_end: float | None = Field(default=None, gt=0, lt=1)
    """Last beta."""
    set_alpha_to_one: bool | None = None
    """Whether the step to clean latents removes all noise."""
    steps_offset: int | None = Field(default=None, ge=0, le=10)
    """Added to each timestep."""
    timestep_spacing: Literal["leading", "trailing"] | None = None
    """Which timesteps are walked."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the model returns."""


class ModelSpec(Schema):
    """A model: a local folder, ``embedded:...``, or a repository of the Hugging Face hub."""

    path: str | None = None
    """A folder in diffusers' format, or ``embedded:sprites/image`` and its like."""
    repo_id: str | None = None
    """Repository on the hub; instead of ``path``."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    variant: str | None = None
    """File variant, such as ``fp16``."""
    subfolder: str | None = None
    """Folder inside the repository or path."""
    weight_name: str | None = Field(default=None, pattern=r"^[^/\\]+\.safetensors$")
    """File of weights, where a folder holds several, as an IP-Adapter's may."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Precision of the weights while they run; ``numerics.dtype`` by default."""
    base: Name | None = None
    """The model that a motion adapter, ControlNet or upsampler is built on; ``image`` by default."""
    loras: tuple[LoraSpec, ...] = Field(default=(), max_length=16)
    """LoRAs that are merged into its weights, in this order."""
    vae: Name | None = None
    """The model whose VAE makes and reads its latents; its own, or its base's, by default."""
    scheduler: SchedulerSpec = SchedulerSpec()
    """Replaces fields of its scheduler's configuration."""

    @model_validator(mode="after")
    def _lies_in_one_place(self) -> Self:
        _one_place(self.path, self.repo_id)
        return self


class Prompts(Schema):
    """The texts that stages refer to by name."""

    source: str = ""
    """Caption of the source video; inversion uses it."""
    target: str = ""
    """Caption of the wanted video."""
    instruction: str = ""
    """What to change; image models get it instead of ``target`` where it is set."""
    negative: str = ""
    """What guidance steers away from."""


class TimedPrompts(Prompts):
    """Prompts for a part of the video, in source time."""

    start: Seconds = Field(default=0.0, ge=0)
    """First moment at which these hold."""
    end: Seconds | None = Field(default=None, gt=0)
    """Moment at which they end; the next entry's start by default."""


class Chunks(Schema):
    """How much one record proves."""

    frames: int = Field(default=16, ge=1, le=4096)
    """Frames of a chunk: the unit of commit, retry and resume."""


class Numerics(Schema):
    """What the last bits depend on; part of every key of a stage that runs a model."""

    micro_batch: int = Field(default=8, ge=1, le=256)
    """Frames in one model call; the last call is padded."""
    threads: int = Field(default=2, ge=1, le=256)
    """Threads of the CPU that a model call uses."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Precision of models and of latents."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU where the work will run, if there is one."""
    offload: Literal["none", "model"] = "none"
    """model: models wait in the machine's memory and are on the GPU while they run; in no key."""


class Limits(Schema):
    """What a plan may use; a plan over a limit is refused before anything runs."""

    memory: ByteSize | None = None
    """Peak memory of all processes, such as 8GiB; the machine's memory by default."""
    disk: ByteSize | None = None
    """Bytes in the store; the free space of a local store by default."""


class Windows(WindowRule):
    """Windows of stages that name no rule of their own, and the cuts that no window crosses."""

    scenes: Literal["auto", "none"] | tuple[Seconds, ...] = "none"
    """auto finds scene cuts in the whole video; or the moments of cuts, in source time."""
    scene_threshold: float = Field(default=10.0, gt=0, le=100)
    """Score of FFmpeg's scdet from which a frame begins a scene; lower finds more."""

    @property
    def rule(self) -> WindowRule:
        """Return the rule alone."""
        return WindowRule(**{name: getattr(self, name) for name in WindowRule.model_fields})


class Output(Schema):
    """The video that is published."""

    uri: str = Field(min_length=1)
    """Path; ``{stem}`` is the source's name without its suffix, ``{name}`` the recipe's."""
    codec: Literal["h264", "h265", "ffv1", "prores"] = "h264"
    """Encoder."""
    crf: int = Field(default=18, ge=0, le=51)
    """Constant rate factor of h264 and h265; lower is better."""
    preset: str = Field(default="medium", pattern=r"^[a-z]+$")
    """Speed preset of h264 and h265."""
    profile: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_:-]+$")
    """Codec profile."""
    tune: str | None = Field(default=None, pattern=r"^[a-z]+$")
    """Tuning of h264 and h265."""
    pix_fmt: str | None = Field(default=None, pattern=r"^[a-z0-9]+$")
    """Pixel format; chosen from the source's bit depth by default."""
    threads: int = Field(default=1, ge=1, le=64)
    """Encoder threads; another number gives other bytes."""
    audio: Literal["auto", "copy", "aac", "none"] = "auto"
    """``auto`` copies, and re-encodes to AAC what the container cannot hold."""
    segment_seconds: float = Field(default=10.0, ge=0.5, le=600)
    """Length of a segment: the checkpoint of encoding."""


class Redo(Schema):
    """A range of frames for which other values hold; written by ``latentloom redo``."""

    frames: tuple[int, int]
    """Absolute source frames, half open."""
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    """Seed for the range."""
    overrides: tuple[str, ...] = ()
    """``key=value`` pairs on stages and prompts."""

    @model_validator(mode="after")
    def _some_frames(self) -> Self:
        if not 0 <= self.frames[0] < self.frames[1]:
            raise ValueError(f"frames {self.frames[0]}:{self.frames[1]} hold no frame")
        return self


def wiring_faults(stages: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Find duplicate and reserved stage names, and inputs that no earlier stage has.

    Args:
        stages: Name and inputs of each stage, in order.

    Returns:
        One line ``stages[i]...: what; what now`` for each fault.
    """
    faults = []
    known = {"decode_video"}
    for index, (name, inputs) in enumerate(stages):
        if name in IMPLICIT_STAGES:
            faults.append(f"stages[{index}].name: {name!r} is taken by the system; choose another")
        elif name in known:
            faults.append(
                f"stages[{index}].name: duplicate stage name {name!r}; give one of them another name"
            )
        for wanted in inputs:
            if wanted not in known:
                listed = ", ".join(sorted(known))
                faults.append(
                    f"stages[{index}].inputs: unknown input {wanted!r}; stages before it: {listed}"
                )
        known.add(name)
    return faults


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, Mapping | Prompts) else value


class Recipe(Schema):
    """What to do with one video."""

    version: Literal[1]
    """Format of this file."""
    name: Name = "edit"
    """Names runs and the ``{name}`` of output paths."""
    source: Source
    """The video to edit."""
    models: dict[Name, ModelSpec] = Field(default_factory=dict)
    """Models by the names that stages use."""
    maps: dict[MapName, MapInput] = Field(default_factory=dict)
    """Side inputs by the names that stages use: conditions, masks, edited frames."""
    prompts: Annotated[
        tuple[TimedPrompts, ...],
        BeforeValidator(_as_list, json_schema_input_type=Prompts | list[TimedPrompts]),
        Field(min_length=1),
    ] = (TimedPrompts(),)
    """Prompts for the whole video, or a list with ``start`` and ``end``."""
    chunks: Chunks = Chunks()
    """Chunks of frame-local stages."""
    windows: Windows = Windows()
    """Windows of stages that run a video model, and scene cuts."""
    numerics: Numerics = Numerics()
    """Numerics profile."""
    limits: Limits = Limits()
    """Budget."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of every stage that draws noise."""
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=MAX_STAGES)
    """What is done, in order."""
    output: Output | None = None
    """The video to publish; without it, latents or frames stay in the store."""
    redo: tuple[Redo, ...] = ()
    """Ranges with other values."""

    @model_validator(mode="after")
    def _stages_are_wired(self) -> Self:
        faults = wiring_faults([(stage.name, stage.inputs or ()) for stage in self.stages])
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_validator(mode="after")
    def _prompts_in_order(self) -> Self:
        previous = 0.0
        for index, entry in enumerate(self.prompts):
            if index and entry.start <= self.prompts[index - 1].start:
                raise ValueError(f"prompts[{index}].start: entries must follow one another in time")
            if entry.start < previous:
                raise ValueError(f"prompts[{index}].start: overlaps the entry before it")
            if entry.end is not None and entry.end <= entry.start:
                raise ValueError(f"prompts[{index}].end: must lie after its start")
            previous = entry.end or entry.start
        return self
