"""How alike the latents of fused sources were: history for people, part of no key and no result."""

from __future__ import annotations

from pydantic import Field

from latentloom.schemas.base import Schema

Cosines = tuple[tuple[tuple[float, ...], ...], ...]


class Similarity(Schema):
    """Cosine similarity of the latents that one window's sources brought to each step."""

    to: str
    """The source that the others are compared with: the first video model."""
    sources: tuple[str, ...]
    """The others."""
    first_step: int = Field(ge=0)
    """Step that the first entry belongs to."""
    cosines: Cosines
    """By step, then by source, then by frame."""
