"""A run: one execution of a plan, as ``status`` shows it. Not proof of anything; records are."""

from __future__ import annotations

from typing import Literal

from latentloom.schemas.base import Schema

RunStateName = Literal[
    "registered", "running", "stopped", "previewed", "finished", "failed", "interrupted"
]


class StopPoint(Schema):
    """Where a run was told to stop: after so many steps of one stage, in all of its chunks."""

    stage: str
    """Name of the stage."""
    step: int
    """Steps done there, counted from the noisiest, whatever the strength."""
    num_steps: int
    """Steps that the stage has."""


class StageTally(Schema):
    """What a run did for one stage."""

    op: str
    """Kind of the stage."""
    name: str
    """Its name in the recipe."""
    key: str
    """Stage key outside redo ranges."""
    chunks: int
    """Chunks that outlive the stage."""
    computed: int = 0
    """Of these, records that the run created."""
    reused: int = 0
    """Of these, other records that are there at its end, demanded or not."""
    transient: int = 0
    """Chunks made for a reader and deleted behind it."""
    seconds: float = 0.0
    """Wall time."""


class RunState(Schema):
    """Where a run stands."""

    run: str
    """Run id, a ULID."""
    name: str
    """Name of the recipe."""
    plan: str
    """Digest of the plan."""
    state: RunStateName = "registered"
    """``running`` with a dead process means killed: the same command continues it. ``stopped`` and
    ``previewed``: it stands at ``until``, as it was told."""
    source: str
    """The video that is edited."""
    output: str | None = None
    """The video that is published."""
    overwrite: bool = False
    """Whether an output that is not ours may be replaced."""
    host: str = ""
    """Where it runs."""
    pid: int = 0
    """Its process there."""
    started: float = 0.0
    """Unix time of the last start."""
    updated: float = 0.0
    """Unix time of the last change."""
    error: str | None = None
    """Why it failed."""
    until: StopPoint | None = None
    """Where it was told to stop."""
    preview: str | None = None
    """Picture of what is to come from there."""
    preview_left_out: int = 0
    """Shots that are not in it, since one picture holds only so many."""
    stages: tuple[StageTally, ...] = ()
    """What it did, once it is finished."""
