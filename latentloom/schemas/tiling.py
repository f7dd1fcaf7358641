"""How a frame too large for memory is cut into tiles."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from latentloom.schemas.base import Schema


class Tiling(Schema):
    """Square tiles that a model sees one by one, cross-faded where they overlap."""

    size: int = Field(ge=16, le=8192)
    """Side of a tile, in pixels of the larger frame that the stage reads or makes."""
    overlap: int | None = Field(default=None, ge=0)
    """Pixels that neighbours share; about a quarter of the size by default."""

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap is not None and self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} must be smaller than size {self.size}")
        return self

    def in_units(self, unit: int) -> tuple[int, int]:
        """Return size and overlap counted in units of so many pixels, rounded down.

        >>> Tiling(size=64, overlap=20).in_units(8)
        (8, 2)
        >>> Tiling(size=64).in_units(8)
        (8, 2)
        """
        overlap = self.size // 4 if self.overlap is None else self.overlap
        return self.size // unit, overlap // unit
