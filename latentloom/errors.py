"""The error tree, grouped by who can fix it.

Every error says what is wrong, which values, and what to do now. Parts live in ``args`` so that errors
survive pickling between workers; the text is made in ``__str__``.

LatentloomError                 exit code
 +-- RecipeError                2   the person who wrote the recipe (every fault of the file)
 +-- UsageError                 2   the person who typed the command
 +-- MediaError                 4   the person who has the video
 +-- StoreError                 5   the person who keeps the store
 |    +-- DamagedChunkError     5   ... found by its digest or checksum
 |    +-- MissingChunkError     5   ... a record or object that has gone
 |    +-- StoreFormatError      5   ... written by a newer latentloom
 +-- HeldError                  6   another run holds it; wait
 +-- ResourceError              7   memory, disk or budget
 +-- PolicyError                8   refused by a safety rule
 +-- ModelError                 2   the models do not exist or do not fit together
 +-- BatchError                 3   some videos of a batch failed
 +-- StageError                 1   a stage could not finish
 +-- InterruptedRunError      130   Ctrl-C; the same command resumes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class LatentloomError(Exception):
    """Base of all deliberate errors; ``exit_code`` is what the command line returns."""

    exit_code: ClassVar[int] = 1


class RecipeError(LatentloomError):
    """A recipe with faults; ``args[0]`` is a tuple of lines ``file:line: path: what; what now``."""

    exit_code = 2

    def __init__(self, faults: Sequence[str] | str) -> None:
        super().__init__((faults,) if isinstance(faults, str) else tuple(faults))

    @property
    def faults(self) -> tuple[str, ...]:
        """One line for each fault."""
        faults: tuple[str, ...] = self.args[0]
        return faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


class UsageError(LatentloomError):
    """A command that asks for something impossible."""

    exit_code = 2


class ModelError(LatentloomError):
    """A model that is missing, of another kind, or does not fit the others."""

    exit_code = 2


class BatchError(LatentloomError):
    """Some videos of a batch failed."""

    exit_code = 3


class MediaError(LatentloomError):
    """A video that cannot be read or written as asked."""

    exit_code = 4


class StoreError(LatentloomError):
    """A store that breaks one of its promises."""

    exit_code = 5


class DamagedChunkError(StoreError):
    """A chunk whose bytes do not match its record."""


class MissingChunkError(StoreError):
    """A chunk whose record or object has gone."""


class StoreFormatError(StoreError):
    """A store written by a newer version."""


class HeldError(LatentloomError):
    """Another run holds the plan or the output."""

    exit_code = 6


class ResourceError(LatentloomError):
    """Out of memory or disk, or a plan over its budget."""

    exit_code = 7


class PolicyError(LatentloomError):
    """Refused by a safety rule."""

    exit_code = 8


class StageError(LatentloomError):
    """A stage that could not finish; finished chunks are kept."""


class InterruptedRunError(LatentloomError):
    """A run stopped by its user; the same command continues it."""

    exit_code = 130
