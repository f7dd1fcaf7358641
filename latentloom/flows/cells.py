"""What holds for a stage in each shot: its variant (recipe and redo ranges) and its time-ranged values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from latentloom.flows.bound import BoundStage
from latentloom.flows.keys import draws_noise, find_ratios, ratio_in, stage_fields, timed_values
from latentloom.flows.shots import Shot
from latentloom.ops.windows import Range
from latentloom.schemas.base import digest
from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import StageVariant

ItemT = TypeVar("ItemT")


class Cells:
    """The distinct stage variants and time-ranged values of one stage, and which hold in a shot."""

    def __init__(self, bound: BoundStage, shots: Sequence[Shot], facts: Facts) -> None:
        """Find what holds in each shot.

        Args:
            bound: The stage.
            shots: All shots of the cut, in order.
            facts: Facts of its models and maps.
        """
        self.shots = shots
        self.windows = bound.windows
        self.ahead = bound.ahead
        self._variants = _Distinct[StageVariant]()
        self._timed = _Distinct[dict[str, Any]]()
        self._ratios = {
            redo: find_ratios(stage, facts.source.info)
            for redo, (_, stage) in bound.variants.items()
        }
        self._cells: dict[tuple[int, int], tuple[int, int]] = {}
        variant_of: dict[tuple[int, ...], int] = {}
        for redo in dict.fromkeys(shot.redo for shot in shots):
            variant = _variant(bound, redo, facts)
            variant_of[redo] = self._variants.index(variant.model_dump_json(), variant)
        for shot in shots:
            recipe, stage = bound.variants[shot.redo]
            values = timed_values(stage, recipe.prompts[shot.entry], facts)
            self._cells[shot.start, shot.stop] = (
                variant_of[shot.redo],
                self._timed.index(digest(values), values),
            )

    @property
    def variants(self) -> list[StageVariant]:
        """Return the distinct variants."""
        return self._variants.items

    @property
    def timed(self) -> list[dict[str, Any]]:
        """Return the distinct time-ranged values."""
        return self._timed.items

    def of(self, shot: Shot) -> tuple[int, int]:
        """Return the indices of variant and time-ranged values in a shot."""
        return self._cells[shot.start, shot.stop]

    def of_span(self, shot: Shot, span: Range) -> tuple[int, int]:
        """Return the same for a range within a shot, with the values that change from frame to frame."""
        variant, timed = self.of(shot)
        together = self.timed[timed] | ratio_in(self._ratios[shot.redo], *span)
        return variant, self._timed.index(digest(together), together)

    def runs(self) -> list[Shot]:
        """Join neighbouring shots in which nothing differs for this stage."""
        runs: list[Shot] = []
        for shot in self.shots:
            if runs and self.of(runs[-1]) == self.of(shot):
                last = runs.pop()
                joined = Shot(last.start, shot.stop, last.entry, last.redo)
                self._cells[joined.start, joined.stop] = self.of(shot)
                runs.append(joined)
            else:
                runs.append(shot)
        return runs


def _variant(bound: BoundStage, redo: tuple[int, ...], facts: Facts) -> StageVariant:
    recipe, stage = bound.variants[redo]
    fields = stage_fields(
        stage,
        recipe=recipe,
        facts=facts,
        seed=recipe.seed,
        windows=bound.windows,
        frame_shape=bound.frame_shape,
        pixels=bound.pixels,
    )
    return StageVariant(
        key=digest(fields),
        fields=fields,
        params=stage.model_dump(mode="json"),
        seed=recipe.seed if draws_noise(stage) else 0,
    )


class _Distinct(Generic[ItemT]):
    """Items in the order in which they first came, each once."""

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self._places: dict[str, int] = {}

    def index(self, key: str, item: ItemT) -> int:
        """Return the place of an item by what tells it from others."""
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(item)
        return self._places[key]
