"""What happened in a run, one line each. History only: no event proves that a chunk is done."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, NonNegativeFloat, NonNegativeInt

EventKind = Literal[
    "run_started",
    "run_finished",
    "run_stopped",
    "run_failed",
    "run_interrupted",
    "chunk_started",
    "chunk_computed",
    "chunk_stopped",
    "chunk_reused",
    "chunk_deleted",
    "stage_finished",
    "note",
]


class Event(BaseModel):
    """One thing that happened in a run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    time: Annotated[float, Field(allow_inf_nan=False)]
    """Unix time in seconds, by the worker's clock."""
    kind: EventKind
    """What happened."""
    run: str
    """Run id."""
    stage: str | None = None
    """Stage name, where one is meant."""
    key: str | None = None
    """Chunk key, where one is meant."""
    index: NonNegativeInt | None = None
    """Number of the chunk within its stage."""
    seconds: NonNegativeFloat | None = None
    """How long it took."""
    worker: str = ""
    """Who did it: ``host-pid``."""
    attempt: NonNegativeInt = 0
    """How often it had been tried before."""
    detail: dict[str, JsonValue] = {}
    """Whatever else is worth keeping: peak bytes, an error's text."""
