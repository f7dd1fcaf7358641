"""Tables for people: what a plan will do, what runs did, what the store holds.

Names come from users: they are shown as they are, never read as markup, emoji or control codes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from latentloom.schemas.base import readable
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState, StopPoint

if TYPE_CHECKING:
    from latentloom.flows.need import Need


def show_plan(console: Console, plan: Plan, need: Need, hits: Mapping[str, int]) -> None:
    """Show what a plan would compute."""
    info = plan.facts.source.info
    seconds = info.seconds(plan.stop) - info.seconds(plan.start)
    show_line(
        console,
        f"{plan.facts.source.uri}: frames {plan.start}-{plan.stop}"
        f" ({plan.num_frames} frames, {seconds:.2f} s), device {plan.facts.machine.device}",
    )
    table = _table("stage", "op", "key", "chunks>", "hits>", "to do>", "memory>", "store>")
    for stage in plan.stages:
        if not stage.stored:
            continue
        _add(
            table,
            stage.name,
            stage.op,
            stage.key[:12],
            str(len(stage.chunks)),
            str(hits[stage.name]),
            _to_do(need, stage.name),
            readable(stage.peak_bytes),
            "passing" if stage.transient else readable(sum(stage.chunk_bytes)),
        )
    console.print(table)
    show_line(
        console,
        f"peak memory {readable(plan.peak_bytes)}, store {readable(plan.store_bytes)}"
        + (f", output {plan.output}" if plan.output else ""),
    )
    show_warnings(console, plan.warnings)


def show_warnings(console: Console, warnings: Iterable[str]) -> None:
    """Show what a plan warns of."""
    for warning in warnings:
        show_line(console, f"warning: {warning}")


def _to_do(need: Need, name: str) -> str:
    """Write how many chunks are to be made, and in how many steps of windows where these meet."""
    chunks, computed = len(need[name]), need.num_computed(name)
    return str(chunks) if computed == chunks else f"{chunks} ({computed} window steps)"


def show_run(console: Console, state: RunState) -> None:
    """Show what a run did."""
    table = _table("stage", "op", "chunks>", "computed>", "reused>", "passing>", "seconds>")
    for stage in state.stages:
        _add(
            table,
            stage.name,
            stage.op,
            str(stage.chunks),
            str(stage.computed),
            str(stage.reused),
            str(stage.transient),
            f"{stage.seconds:.1f}",
        )
    show_line(console, f"run {state.run} {state.state}: {state.source}")
    if state.stages:
        console.print(table)
    if state.error:
        show_line(console, f"error: {state.error}")
    stands = state.state in ("stopped", "previewed")
    if state.until is not None and stands:
        show_line(console, stop_line(state.until, state.preview, state.preview_left_out))
    if state.output and not stands:
        show_line(console, f"output: {state.output}")


def stop_line(until: StopPoint, preview: str | None, left_out: int) -> str:
    """Say where a run stands that was told to stop, where the picture of it is, and what it does not show."""
    line = f"stands after step {until.step} of {until.num_steps} of stage {until.stage!r}"
    if preview:
        line += f"; preview: {preview}"
    return (
        f"{line}, without {left_out} of the shots, which are too many for it" if left_out else line
    )


def show_runs(console: Console, states: Iterable[tuple[RunState, int, int]]) -> None:
    """List runs with how many of their chunks are there."""
    table = _table("run", "name", "state", "chunks>", "updated", "output")
    for state, present, total in states:
        updated = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.updated))
        _add(
            table,
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
        _add(table, *row)
    console.print(table)


def show_line(console: Console, text: str) -> None:
    """Show one line of text."""
    console.print(_plain(text))


def _table(*header: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in header:
        right = title.endswith(">")
        table.add_column(
            _plain(title.removesuffix(">")), justify="right" if right else "left", overflow="fold"
        )
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(_plain(cell) for cell in cells))


def _plain(text: str) -> Text:
    shown = (
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
    return Text("".join(shown))
