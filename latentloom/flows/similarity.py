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
    pairs: dict[tuple[str, str], dict[int, list[float]]] = {}
    for window in windows:
        for position, source in enumerate(window.sources):
            by_step = pairs.setdefault((source, window.to), defaultdict(list))
            for step, rows in enumerate(window.cosines, window.first_step):
                by_step[step].extend(rows[position])
    return [
        {"source": source, "to": to, **_means(by_step)} for (source, to), by_step in pairs.items()
    ]


def _means(by_step: dict[int, list[float]]) -> dict[str, Any]:
    """Return the means of the newest steps without a gap: a killed process takes its last events with it."""
    first = max(by_step)
    while first - 1 in by_step:
        first -= 1
    means = (sum(by_step[i]) / len(by_step[i]) for i in range(first, max(by_step) + 1))
    steps = [round(mean, 5) for mean in means]
    return {"first_step": first, "steps": steps, "lowest": first + steps.index(min(steps))}
