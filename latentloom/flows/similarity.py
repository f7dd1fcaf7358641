"""Sum up how alike the latents of fused sources were, over the windows that a run computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from latentloom.schemas.event import Event
from latentloom.schemas.similarity import Similarity


def similarity_by_stage(events: Iterable[Event]) -> dict[str, list[dict[str, Any]]]:
    """Return, for each stage that fused something, one summary for each pair of sources.

    Args:
        events: Events of a run, by time; what was computed again counts once.

    Returns:
        By stage: ``source`` and ``to``, whose latents are compared; ``first_step`` and ``steps``, the mean
        cosine at each step over all frames; ``lowest``, the step at which that mean is lowest.
    """
    noted: dict[str, dict[str | None, Similarity]] = defaultdict(dict)
    for event in events:
        if event.stage is not None and "similarity" in event.detail:
            found = Similarity.model_validate(event.detail["similarity"])
            noted[event.stage][event.key] = found
    return {stage: _summaries(windows.values()) for stage, windows in noted.items()}


def similarity_line(stage: str, summary: dict[str, Any]) -> str:
    """Write a summary in a line."""
    first, steps, lowest = summary["first_step"], summary["steps"], summary["lowest"]
    return (
        f"{stage}: cosine of {summary['source']} and {summary['to']} {steps[0]:.3f} at step {first},"
        f" {steps[-1]:.3f} at step {first + len(steps) - 1},"
        f" lowest {steps[lowest - first]:.3f} at step {lowest}"
    )


def _summaries(windows: Iterable[Similarity]) -> list[dict[str, Any]]:
    pairs: dict[tuple[str, str, int], list[list[float]]] = {}
    for window in windows:
        for position, source in enumerate(window.sources):
            by_step = pairs.setdefault(
                (source, window.to, window.first_step), [[] for _ in window.cosines]
            )
            for cosines, rows in zip(by_step, window.cosines, strict=True):
                cosines.extend(rows[position])
    return [
        {"source": source, "to": to, "first_step": first, **_means(first, by_step)}
        for (source, to, first), by_step in pairs.items()
    ]


def _means(first_step: int, by_step: list[list[float]]) -> dict[str, Any]:
    steps = [round(sum(cosines) / len(cosines), 5) for cosines in by_step]
    return {"steps": steps, "lowest": first_step + steps.index(min(steps))}
