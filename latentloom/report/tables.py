"""Tables for people: what a plan will do, what runs did, what the store holds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from latentloom.schemas.base import readable
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState


def show_plan(
    console: Console, plan: Plan, need: Mapping[str, list[int]], hits: Mapping[str, int]
) -> None:
    """Show what a plan would compute."""
    info = plan.facts.source.info
    seconds = info.seconds(plan.stop) - info.seconds(plan.start)
    console.print(
        f"{plan.facts.source.uri}: frames {plan.start}-{plan.stop}"
        f" ({plan.num_frames} frames, {seconds:.2f} s), device {plan.facts.machine.device}"
    )
    table = _table("stage", "op", "key", "chunks>", "hits>", "to do>", "memory>", "store>")
    for stage in plan.stages:
        if not stage.stored:
            continue
        table.add_row(
            stage.name,
            stage.op,
            stage.key[:12],
            str(len(stage.chunks)),
            str(hits[stage.name]),
            str(len(need[stage.name])),
            readable(stage.peak_bytes),
            "passing" if stage.transient else readable(sum(stage.chunk_bytes)),
        )
    console.print(table)
    console.print(
        f"peak memory {readable(plan.peak_bytes)}, store {readable(plan.store_bytes)}"
        + (f", output {plan.output}" if plan.output else "")
    )
    for warning in plan.warnings:
        console.print(f"warning: {warning}")


def show_run(console: Console, state: RunState) -> None:
    """Show what a run did."""
    table = _table("stage", "op", "chunks>", "computed>", "reused>", "passing>", "seconds>")
    for stage in state.stages:
        table.add_row(
            stage.name,
            stage.op,
            str(stage.chunks),
            str(stage.computed),
            str(stage.reused),
            str(stage.transient),
            f"{stage.seconds:.1f}",
        )
    console.print(f"run {state.run} {state.state}: {state.source}")
    if state.stages:
        console.print(table)
    if state.error:
        console.print(f"error: {state.error}")
    if state.output:
        console.print(f"output: {state.output}")


def show_runs(console: Console, states: Iterable[tuple[RunState, int, int]]) -> None:
    """List runs with how many of their chunks are there."""
    table = _table("run", "name", "state", "chunks>", "updated", "output")
    for state, present, total in states:
        updated = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.updated))
        table.add_row(
            state.run,
            state.name,
            state.state,
            f"{present}/{total}",
            updated if state.updated else "",
            state.output or "",
        )
    console.print(table)


def show_rows(console: Console, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show any table; a header that ends in ``>`` aligns right."""
    table = _table(*header)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _table(*header: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        right = title.endswith(">")
        table.add_column(
            title.removesuffix(">"), justify="right" if right else "left", overflow="fold"
        )
    return table
