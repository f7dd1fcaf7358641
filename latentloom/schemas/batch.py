"""A batch file, version 1: one recipe over many videos. And what a store keeps about each of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from latentloom.schemas.base import Schema, Seconds
from latentloom.schemas.recipe import Name

BATCH_KEYS = frozenset({"recipe", "inputs"})
"""Fields that a batch has and a recipe has not."""


class Inputs(Schema):
    """Which videos: patterns, a manifest, or both."""

    include: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Patterns such as ``videos/**/*.mp4``: paths or fsspec URIs; ``**`` stands for any folders."""
    exclude: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Patterns of videos to leave out, matched against the whole path or URI."""
    manifest: str | None = Field(default=None, min_length=1)
    """CSV or JSONL: ``uri`` and any recipe fields by dotted path, which hold for that video."""

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.include and self.manifest is None:
            raise ValueError("give include or manifest: which videos?")
        return self


class Batch(Schema):
    """What to do with many videos."""

    version: Literal[1]
    """Format of this file."""
    name: Name = "batch"
    """Names the batch in its store; its videos' records lie under it."""
    recipe: str | dict[str, Any]
    """Path of a recipe, or a recipe; ``source.uri`` and ``output.uri`` are filled in."""
    inputs: Inputs
    """The videos."""
    output: str = Field(min_length=1)
    """Path with ``{relpath}`` (the way below the fixed part of a pattern), ``{stem}`` or ``{name}``."""
    overrides: tuple[str, ...] = ()
    """``key=value`` pairs for the recipe of every video."""
    max_parallel: int = Field(default=1, ge=1, le=64)
    """Videos that are worked on at once, each in a process of its own."""
    retries: int = Field(default=1, ge=0, le=20)
    """More tries for a video within one scan, where another try can help."""
    retry_delay: Seconds = Field(default=10.0, ge=0)
    """Wait before the first of them; doubled each time."""
    max_attempts: int = Field(default=3, ge=1, le=1000)
    """Scans that may fail on a video before it is left alone until it or the recipe changes."""
    on_failure: Literal["continue", "stop"] = "continue"
    """Whether other videos are still begun once one has failed."""
    max_failures: int | None = Field(default=None, ge=1)
    """Failures in one scan after which no other video is begun."""
    min_success_ratio: float = Field(default=0.0, ge=0, le=1)
    """Part of the videos that must be done for the batch to count as completed."""
    order: Literal["name", "short_first", "newest_first"] = "name"
    """Which videos come first; the size of a file stands for its length."""


VideoState = Literal["waiting", "running", "done", "failed", "quarantined"]


class VideoRecord(Schema):
    """What a batch knows of one video: what was seen of it, and how the last try ended."""

    uri: str
    """The source."""
    output: str
    """The video that is published."""
    state: VideoState = "waiting"
    """``running`` with a dead process means killed: the next scan takes it up."""
    source_version: str = ""
    """What told versions of the source apart when it was tried last."""
    recipe: str = ""
    """Digest of the recipe, its models and what it runs on."""
    output_version: str = ""
    """What told versions of the output apart when it was published."""
    attempts: int = 0
    """Scans that failed on this source with this recipe."""
    scan: str = ""
    """The scan that took it up last."""
    run: str | None = None
    """The last run."""
    flow_run: str | None = None
    """Its flow run on the Prefect server."""
    error: str | None = None
    """Why it failed."""
    exit_code: int = 0
    """What ``latentloom run`` would have exited with."""
    computed: int = 0
    """Chunks that the last run computed."""
    reused: int = 0
    """Chunks that it reused."""
    seconds: float = 0.0
    """How long the last try took."""
    warnings: tuple[str, ...] = ()
    """Of its plan."""
    host: str = ""
    """Where it is or was worked on."""
    pid: int = 0
    """By which process there."""
    updated: float = 0.0
    """Unix time of the last change."""
