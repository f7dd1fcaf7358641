"""Tables show what users wrote, and nothing else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from latentloom.flows.compile import compile_plan
from latentloom.flows.need import Need
from latentloom.report.tables import show_line, show_plan, show_rows, show_run, show_runs, stop_line
from latentloom.schemas.run import RunState, StopPoint
from tests.facts import make_facts, make_recipe

NAMES = ["[draft] x.mp4", "[/] y.mp4", "[bold]z[/bold].mp4", ":smile:.mp4", "[link=http://a]b.mp4"]


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=300, highlight=False, force_terminal=True), out


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    screen, out = console()
    state = RunState(
        run="r", name="n", plan="p", source=f"/in/{name}", output=f"/out/{name}", error=f"no {name}"
    )
    show_run(screen, state)
    show_runs(screen, [(state, 1, 2)])
    show_rows(screen, ("what", "many>"), [(name, "3")])
    show_line(screen, f"run of {name}")
    text = out.getvalue()
    for wanted in (f"/in/{name}", f"output: /out/{name}", f"no {name}", f"run of {name}"):
        assert wanted in text
    assert text.count(f"/out/{name}") == 2
    assert text.count(name) == 6


@pytest.mark.parametrize("name", NAMES)
def test_plan_shows_names_as_they_are(name: str) -> None:
    screen, out = console()
    facts = make_facts()
    source = facts.source.model_copy(update={"uri": f"/in/{name}"})
    plan = compile_plan(
        make_recipe(output={"uri": f"/out/{name}"}), facts.model_copy(update={"source": source})
    ).model_copy(update={"warnings": (f"look at {name}",)})
    stages = [stage.name for stage in plan.stages]
    show_plan(screen, plan, Need({stage: [] for stage in stages}, {}), dict.fromkeys(stages, 0))
    assert f"/in/{name}: frames 0-100" in out.getvalue()
    assert f"output /out/{name}" in out.getvalue()
    assert f"warning: look at {name}" in out.getvalue()


def test_control_codes_and_undecodable_bytes_are_spelled_out() -> None:
    screen, out = console()
    show_rows(screen, ("name",), [("\x1b]0;title\x07\udcff\u202e",)])
    show_line(screen, "\x1b[2J")
    assert r"\x1b]0;title\x07\udcff\u202e" in out.getvalue()
    assert r"\x1b[2J" in out.getvalue()


def test_picture_that_leaves_shots_out_says_so() -> None:
    until = StopPoint(stage="fuse", step=2, num_steps=8)
    assert "without" not in stop_line(until, "/out/x.png", 0)
    assert stop_line(until, "/out/x.png", 12).endswith(
        "preview: /out/x.png, without 12 of the shots, which are too many for it"
    )
