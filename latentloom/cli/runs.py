"""Commands about runs: run, resume, redo, status, why, forget, report."""

from __future__ import annotations

import functools
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from latentloom.schemas.plan import Plan
    from latentloom.schemas.run import RunState
    from latentloom.storage.store import Store

from latentloom.cli.options import (
    compile_recipe_file,
    json_option,
    make_console,
    notify_options,
    open_store,
    overrides_argument,
    print_json,
    recipe_argument,
    run_options,
    store_option,
)


@click.command()
@recipe_argument
@overrides_argument
@run_options
@notify_options
def run(recipe: Path, overrides: Sequence[str], store: str, **options: Any) -> None:
    """Run a recipe here, and wait for it; a killed run continues."""
    opened, compiled = compile_recipe_file(recipe, overrides, store)
    _run(opened, compiled, **options)


@click.command()
@click.argument("run_id", metavar="RUN")
@run_options
@notify_options
def resume(run_id: str, store: str, **options: Any) -> None:
    """Continue a run from its finished chunks."""
    from latentloom.flows.runs import find_run, read_plan, read_state

    opened = open_store(store)
    found = find_run(opened, run_id)
    output = read_state(opened, found).output
    compiled = read_plan(opened, found).model_copy(update={"output": output})
    _run(opened, compiled, run_id=found, **options)


@click.command()
@click.argument("run_id", metavar="RUN")
@overrides_argument
@click.option(
    "--frames", "frames", required=True, metavar="A:B", help="Absolute source frames, half open."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    help="Seed for the range; drawn where it is not given.",
)
@run_options
@notify_options
def redo(
    run_id: str, overrides: Sequence[str], frames: str, seed: int | None, store: str, **options: Any
) -> None:
    """Make a range of frames again, with another seed or other values; the rest is kept."""
    from latentloom.flows.compile import compile_plan
    from latentloom.flows.redo import with_redo
    from latentloom.flows.resolve import resolve
    from latentloom.flows.runs import find_run, read_plan

    opened = open_store(store)
    before = read_plan(opened, find_run(opened, run_id))
    recipe = with_redo(before, frames=frames, seed=seed, overrides=overrides)
    _run(opened, compile_plan(recipe, resolve(recipe, opened)), **options)


@click.command()
@click.argument("run_id", metavar="[RUN|BATCH]", required=False)
@store_option
@json_option
def status(run_id: str | None, store: str, as_json: bool) -> None:
    """Show runs, or what is done of one run or batch."""
    from latentloom.flows.archive import batch_name
    from latentloom.flows.inspect import describe_run, list_runs
    from latentloom.flows.similarity import similarity_line
    from latentloom.report.tables import show_line, show_rows, show_runs, show_warnings, stop_line
    from latentloom.schemas.run import StopPoint

    opened = open_store(store)
    console = make_console(err=as_json)
    if run_id is None:
        listed = list_runs(opened)
        show_runs(console, listed)
        facts = [
            state.model_dump(mode="json") | {"present": a, "total": b} for state, a, b in listed
        ]
        if as_json:
            print_json({"runs": facts})
        return
    batch = batch_name(opened, run_id)
    if batch is not None:
        _show_batch(opened, batch, as_json=as_json)
        return
    described = describe_run(opened, run_id)
    show_line(console, f"run {described['run']} {described['state']}: {described['source']}")
    header = ("stage", "op", "done>", "chunks>", "seconds>")
    show_rows(
        console,
        header,
        [
            [str(row[title.rstrip(">")]) for title in ("name", "op", "done", "chunks", "seconds")]
            for row in described["stages"]
        ],
    )
    for row in described["stages"]:
        if row["step"]:
            at = row["step"]
            text = (
                f"{at['windows']} of {row['chunks']} windows at step {at['step']} of {at['last']}"
            )
            show_line(console, f"{row['name']}: {text}")
        for summary in row["similarity"]:
            show_line(console, similarity_line(row["name"], summary))
    if described["error"]:
        show_line(console, f"error: {described['error']}")
    show_warnings(console, described["warnings"])
    if described["state"] in ("stopped", "previewed"):
        until = StopPoint.model_validate(described["until"])
        left_out = described["preview_left_out"]
        show_line(console, stop_line(until, described["preview"], left_out))
    if as_json:
        print_json(described)


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("stage")
@store_option
@json_option
def why(run_id: str, stage: str, store: str, as_json: bool) -> None:
    """Tell why a stage of a run was computed and not reused: the fields that differ from earlier runs."""
    from latentloom.flows.inspect import explain

    explained = explain(open_store(store), run_id, stage)
    for line in explained["lines"]:
        click.echo(line)
    if as_json:
        print_json(explained)


@click.command()
@click.argument("run_id", metavar="RUN")
@store_option
def forget(run_id: str, store: str) -> None:
    """Unregister a run, so that prune can free what only it needs."""
    from latentloom.flows.runs import find_run

    opened = open_store(store)
    found = find_run(opened, run_id)
    opened.forget_run(found)
    click.echo(f"forgot run {found}; `latentloom prune` frees its chunks", err=True)


@click.command()
@click.argument("run_id", metavar="RUN", default="latest")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Where the side-by-side picture goes; <output>.png by default.",
)
@store_option
@json_option
def report(run_id: str, picture: Path | None, store: str, as_json: bool) -> None:
    """Show what a run did, and write a picture of source and result side by side."""
    from latentloom.flows.inspect import sample_rows
    from latentloom.flows.runs import find_run, read_plan, read_state
    from latentloom.report.picture import side_by_side
    from latentloom.report.tables import show_run, show_warnings

    opened = open_store(store)
    found = find_run(opened, run_id)
    state, plan = read_state(opened, found), read_plan(opened, found)
    console = make_console(err=as_json)
    show_run(console, state)
    show_warnings(console, plan.warnings)
    written = None
    if state.output is not None and Path(state.output).is_file():
        written = picture or Path(f"{state.output}.png")
        side_by_side(sample_rows(plan, state.output), written)
        click.echo(f"picture: {written}", err=True)
    if as_json:
        facts = {"picture": str(written) if written else None, "warnings": list(plan.warnings)}
        print_json(state.model_dump(mode="json") | facts)


def _show_batch(store: Store, batch: str, *, as_json: bool) -> None:
    from latentloom.flows.archive import describe_batch
    from latentloom.report.tables import show_line, show_rows
    from latentloom.schemas.base import readable

    found = describe_batch(store, batch)
    console = make_console(err=as_json)
    header = (
        "batch",
        "done>",
        "running>",
        "failed>",
        "quarantined>",
        "waiting>",
        "seconds>",
        "bytes>",
    )
    counts = [
        str(found[title]) for title in ("done", "running", "failed", "quarantined", "waiting")
    ]
    row = [batch, *counts, f"{found['seconds']:.0f}", readable(found["bytes"])]
    show_rows(console, header, [row])
    for failure in found["failures"]:
        show_line(console, f"{failure['state']}: {failure['uri']}: {failure['error']}")
    for warning, count in found["warnings"].items():
        show_line(console, f"warning ({count} of its videos): {warning}")
    if as_json:
        print_json(found)


def _run(
    store: Store,
    compiled: Plan,
    *,
    workers: int,
    scheduler: str | None,
    no_wait: bool,
    overwrite: bool,
    until_step: str | None,
    preview: bool,
    as_json: bool,
    notify: Sequence[str],
    notify_on: str | None,
    run_id: str | None = None,
) -> None:
    from latentloom.flows.launch import launch
    from latentloom.flows.notify import notifying
    from latentloom.report.tables import show_run

    for warning in compiled.warnings:
        click.echo(f"warning: {warning}", err=True)
    with _logging(), notifying(notify, notify_on):
        state, error = launch(
            store,
            compiled,
            workers=workers,
            scheduler=scheduler,
            wait=not no_wait,
            overwrite=overwrite,
            run_id=run_id,
            until=until_step,
            preview=preview,
            write=functools.partial(click.echo, err=True),
        )
    show_run(make_console(err=True), state)
    if until_step is not None and state.state == "finished":
        click.echo("its video is in place already, so there was nothing to stop in", err=True)
    if state.state in ("stopped", "previewed"):
        click.echo(f"to go on: the same command without --until-step, or {_next(state)}", err=True)
    if as_json:
        print_json(_run_facts(state))
    if error is not None:
        raise error


def _run_facts(state: RunState) -> dict[str, Any]:
    stages = [stage.model_dump(mode="json") for stage in state.stages]
    facts: dict[str, Any] = {
        "run": state.run,
        "state": state.state,
        "output": state.output,
        "stages": stages,
    }
    if state.until is not None:
        facts |= {
            "until": state.until.model_dump(mode="json"),
            "preview": state.preview,
            "preview_left_out": state.preview_left_out,
        }
    if state.state in ("stopped", "previewed"):
        facts["next"] = _next(state)
    return facts | ({"error": state.error} if state.error else {})


def _next(state: RunState) -> str:
    """Return the command that goes on with a run that was told to stop."""
    store = click.get_current_context().params["store"]
    named = "" if store == ".latentloom" else f" --store {shlex.quote(store)}"
    return f"latentloom resume {state.run}{named}"


@contextmanager
def _logging() -> Iterator[None]:
    """Show one line per chunk on stderr."""
    logger = logging.getLogger("latentloom")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
