"""The command line: data on stdout, messages on stderr, one clear error and its exit code."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from latentloom.errors import InterruptedRunError, LatentloomError

if TYPE_CHECKING:
    from rich.console import Console

    from latentloom.schemas.plan import Plan
    from latentloom.schemas.recipe import Recipe
    from latentloom.schemas.run import RunState
    from latentloom.storage.store import Store

Command = Callable[..., Any]

_store_option = click.option(
    "--store",
    default=".latentloom",
    show_default=True,
    envvar="LATENTLOOM_STORE",
    help="Where chunks and runs lie: a path or an fsspec URI.",
)
_json_option = click.option(
    "--json", "as_json", is_flag=True, help="End stdout with one JSON object."
)
_recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
_overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def _run_options(command: Command) -> Command:
    """Add the options of commands that run a plan."""
    options = [
        _store_option,
        click.option(
            "--workers",
            type=click.IntRange(1, 256),
            default=1,
            show_default=True,
            help="Worker processes of a local Dask cluster; 1 is this process.",
        ),
        click.option("--no-wait", is_flag=True, help="Exit 6 if another process runs this plan."),
        click.option("--overwrite", is_flag=True, help="Replace an output that is not ours."),
        _json_option,
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LATENTLOOM"}
)
@click.version_option(package_name="latentloom")
def cli() -> None:
    """Edit long videos with diffusion models, in chunks that are never lost."""


@cli.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate(recipes: Sequence[Path]) -> None:
    """Check recipes; nothing is looked up."""
    from latentloom.errors import RecipeError

    faults: list[str] = []
    for path in recipes:
        try:
            recipe = _load(path, ())
            click.echo(f"{path}: ok, {len(recipe.stages)} stages", err=True)
        except RecipeError as error:
            faults.extend(error.faults)
    if faults:
        raise RecipeError(faults)


@cli.command()
@_recipe_argument
@_overrides_argument
@_store_option
@_json_option
def plan(recipe: Path, overrides: Sequence[str], store: str, as_json: bool) -> None:
    """Show what a recipe would compute: chunks, hits, memory and bytes."""
    from latentloom.flows.need import find_need
    from latentloom.report.tables import show_plan

    opened, compiled = _compile(recipe, overrides, store)
    published = _is_published(compiled)
    present = opened.present(list(compiled.keys()))
    need = find_need(compiled, present, published=published)
    hits = {
        stage.name: sum(chunk.key in present for chunk in stage.chunks) for stage in compiled.stages
    }
    show_plan(_console(err=as_json), compiled, need, hits)
    if as_json:
        _print_json(_plan_facts(compiled, need, hits, published=published))


@cli.command()
@_recipe_argument
@_overrides_argument
@_run_options
def run(recipe: Path, overrides: Sequence[str], store: str, **options: Any) -> None:
    """Run a recipe here, and wait for it; a killed run continues."""
    opened, compiled = _compile(recipe, overrides, store)
    _run(opened, compiled, **options)


@cli.command()
@click.argument("run_id", metavar="RUN")
@_run_options
def resume(run_id: str, store: str, **options: Any) -> None:
    """Continue a run from its finished chunks."""
    from latentloom.flows.runs import find_run, read_plan, read_state

    opened = _open(store)
    found = find_run(opened, run_id)
    output = read_state(opened, found).output
    compiled = read_plan(opened, found).model_copy(update={"output": output})
    _run(opened, compiled, run_id=found, **options)


@cli.command()
@click.argument("run_id", metavar="RUN")
@_overrides_argument
@click.option(
    "--frames", "frames", required=True, metavar="A:B", help="Absolute source frames, half open."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    help="Seed for the range; drawn where it is not given.",
)
@_run_options
def redo(
    run_id: str, overrides: Sequence[str], frames: str, seed: int | None, store: str, **options: Any
) -> None:
    """Make a range of frames again, with another seed or other values; the rest is kept."""
    from latentloom.flows.compile import compile_plan
    from latentloom.flows.redo import with_redo
    from latentloom.flows.resolve import resolve
    from latentloom.flows.runs import find_run, read_plan

    opened = _open(store)
    before = read_plan(opened, find_run(opened, run_id))
    recipe = with_redo(before, frames=frames, seed=seed, overrides=overrides)
    _run(opened, compile_plan(recipe, resolve(recipe, opened)), **options)


@cli.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@_store_option
@_json_option
def status(run_id: str | None, store: str, as_json: bool) -> None:
    """Show runs, or what is done of one."""
    from latentloom.flows.inspect import describe_run, list_runs
    from latentloom.report.tables import show_line, show_rows, show_runs

    opened = _open(store)
    console = _console(err=as_json)
    if run_id is None:
        listed = list_runs(opened)
        show_runs(console, listed)
        facts = [
            state.model_dump(mode="json") | {"present": a, "total": b} for state, a, b in listed
        ]
        if as_json:
            _print_json({"runs": facts})
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
    if described["error"]:
        show_line(console, f"error: {described['error']}")
    if as_json:
        _print_json(described)


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.argument("stage")
@_store_option
@_json_option
def why(run_id: str, stage: str, store: str, as_json: bool) -> None:
    """Tell why a stage of a run was computed and not reused: the fields that differ from earlier runs."""
    from latentloom.flows.inspect import explain

    explained = explain(_open(store), run_id, stage)
    for line in explained["lines"]:
        click.echo(line)
    if as_json:
        _print_json(explained)


@cli.command()
@click.argument("run_id", metavar="RUN")
@_store_option
def forget(run_id: str, store: str) -> None:
    """Unregister a run, so that prune can free what only it needs."""
    from latentloom.flows.runs import find_run

    opened = _open(store)
    found = find_run(opened, run_id)
    opened.forget_run(found)
    click.echo(f"forgot run {found}; `latentloom prune` frees its chunks", err=True)


@cli.command()
@click.argument("run_id", metavar="RUN", default="latest")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Where the side-by-side picture goes; <output>.png by default.",
)
@_store_option
@_json_option
def report(run_id: str, picture: Path | None, store: str, as_json: bool) -> None:
    """Show what a run did, and write a picture of source and result side by side."""
    from latentloom.flows.inspect import sample_rows
    from latentloom.flows.runs import find_run, read_plan, read_state
    from latentloom.report.picture import side_by_side
    from latentloom.report.tables import show_run

    opened = _open(store)
    found = find_run(opened, run_id)
    state = read_state(opened, found)
    show_run(_console(err=as_json), state)
    written = None
    if state.output is not None and Path(state.output).is_file():
        written = picture or Path(f"{state.output}.png")
        side_by_side(sample_rows(read_plan(opened, found), state.output), written)
        click.echo(f"picture: {written}", err=True)
    if as_json:
        _print_json(state.model_dump(mode="json") | {"picture": str(written) if written else None})


@cli.command()
@click.option(
    "--repair", is_flag=True, help="Delete what is damaged, so that runs compute it again."
)
@_store_option
@_json_option
def verify(repair: bool, store: str, as_json: bool) -> None:
    """Read every chunk, and say what is damaged; exit 5 if anything is."""
    from latentloom.errors import StoreError
    from latentloom.storage.maintenance import verify as verify_store

    opened = _open(store)
    found = verify_store(opened)
    for damage in found.damages:
        click.echo(f"{damage.kind} {damage.path}: {damage.detail}", err=True)
    click.echo(f"{found.checked} chunks, {found.bytes} bytes checked, {len(found.damages)} damaged")
    if as_json:
        damages = [
            {"kind": d.kind, "key": d.key, "path": d.path, "detail": d.detail}
            for d in found.damages
        ]
        _print_json({"checked": found.checked, "bytes": found.bytes, "damages": damages})
    for key in {damage.key for damage in found.damages if repair and damage.key}:
        opened.delete(key)
    if found.damages:
        what_now = "deleted; run the recipes again" if repair else "--repair deletes them"
        raise StoreError(f"{len(found.damages)} damaged: {what_now}")


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@_store_option
@_json_option
def prune(dry_run: bool, store: str, as_json: bool) -> None:
    """Delete chunks that no registered run needs, and what killed runs left; nothing under a day old."""
    from latentloom.flows.inspect import kept_keys
    from latentloom.schemas.base import readable
    from latentloom.storage.maintenance import prune as prune_store

    opened = _open(store)
    pruned = prune_store(opened, keep=kept_keys(opened), dry_run=dry_run)
    freed = sum(removed.bytes for removed in pruned.removed)
    for removed in pruned.removed:
        click.echo(f"{removed.kind} {removed.path} {removed.bytes}")
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {readable(freed)} in {len(pruned.removed)} pieces", err=True)
    if as_json:
        _print_json({"removed": len(pruned.removed), "bytes": freed, "dry_run": dry_run})


@cli.command()
@_store_option
@_json_option
def du(store: str, as_json: bool) -> None:
    """Show what the store holds, by kind."""
    from latentloom.report.tables import show_rows
    from latentloom.schemas.base import readable
    from latentloom.storage.maintenance import usage

    used = usage(_open(store))
    rows = [[kind, str(item.files), readable(item.bytes)] for kind, item in used.items()]
    show_rows(_console(err=as_json), ("kind", "files>", "bytes>"), rows)
    if as_json:
        _print_json({kind: {"files": i.files, "bytes": i.bytes} for kind, i in used.items()})


@cli.command()
@click.argument("run_id", metavar="RUN")
@click.argument("stage")
@click.argument("destination")
@_store_option
def export(run_id: str, stage: str, destination: str, store: str) -> None:
    """Write what a stage made as one Zarr array."""
    from latentloom.flows.inspect import export_run_stage

    export_run_stage(_open(store), run_id, stage, destination)
    click.echo(f"wrote {destination}", err=True)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=".")
@click.option(
    "--seconds",
    type=click.FloatRange(0.5, 600),
    default=4.0,
    show_default=True,
    help="Length of the clip.",
)
def init(folder: Path, seconds: float) -> None:
    """Write an example recipe and a rendered clip with sound."""
    from latentloom.flows.example import write_example

    recipe, clip = write_example(folder, seconds=seconds)
    click.echo(f"wrote {recipe} and {clip}; next: latentloom run {recipe}", err=True)


def main() -> NoReturn:
    """Run the command line; every outcome has its exit code."""
    debug = bool(os.environ.get("LATENTLOOM_DEBUG"))
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except LatentloomError as error:
        _complain(str(error))
        code = error.exit_code
        if debug:
            raise
    except click.ClickException as error:
        error.show()
        code = 2
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; the same command resumes")
        code = InterruptedRunError.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if debug:
            raise
        _complain(f"{type(error).__name__}: {error} (LATENTLOOM_DEBUG=1 shows where)")
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _run(
    store: Store,
    compiled: Plan,
    *,
    workers: int,
    no_wait: bool,
    overwrite: bool,
    as_json: bool,
    run_id: str | None = None,
) -> None:
    from latentloom.flows.launch import launch
    from latentloom.report.tables import show_run

    for warning in compiled.warnings:
        click.echo(f"warning: {warning}", err=True)
    with _logging():
        state, error = launch(
            store,
            compiled,
            workers=workers,
            wait=not no_wait,
            overwrite=overwrite,
            run_id=run_id,
            write=functools.partial(click.echo, err=True),
        )
    show_run(_console(err=True), state)
    if as_json:
        _print_json(_run_facts(state))
    if error is not None:
        raise error


def _run_facts(state: RunState) -> dict[str, Any]:
    stages = [stage.model_dump(mode="json") for stage in state.stages]
    facts = {"run": state.run, "state": state.state, "output": state.output, "stages": stages}
    return facts | ({"error": state.error} if state.error else {})


def _plan_facts(
    compiled: Plan, need: dict[str, list[int]], hits: dict[str, int], *, published: bool
) -> dict[str, Any]:
    stages = [
        {
            "op": stage.op,
            "name": stage.name,
            "key": stage.key,
            "chunks": len(stage.chunks),
            "hits": hits[stage.name],
            "needed": len(need[stage.name]),
            "transient": stage.transient,
            "bytes": sum(stage.chunk_bytes),
            "peak_bytes": stage.peak_bytes,
        }
        for stage in compiled.stages
        if stage.stored
    ]
    return {
        "plan": compiled.digest,
        "frames": [compiled.start, compiled.stop],
        "output": compiled.output,
        "published": published,
        "stages": stages,
        "peak_bytes": compiled.peak_bytes,
        "store_bytes": compiled.store_bytes,
        "warnings": list(compiled.warnings),
    }


def _is_published(compiled: Plan) -> bool:
    from latentloom.tasks.published import is_published

    return compiled.output is not None and is_published(compiled, compiled.output)


def _compile(recipe: Path, overrides: Sequence[str], store: str) -> tuple[Store, Plan]:
    from latentloom.flows.compile import compile_plan
    from latentloom.flows.resolve import resolve
    from latentloom.storage.store import Store

    loaded = _load(recipe, overrides)
    opened = Store.open(store)
    return opened, compile_plan(loaded, resolve(loaded, opened))


def _load(path: Path, overrides: Sequence[str]) -> Recipe:
    from latentloom.schemas.load import load_recipe

    roots = [
        Path(root) for root in os.environ.get("LATENTLOOM_ROOTS", "").split(os.pathsep) if root
    ]
    return load_recipe(path, overrides, roots=roots)


def _open(store: str) -> Store:
    from latentloom.storage.store import Store

    return Store.open(store, create=False)


def _console(*, err: bool) -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(stderr=err, highlight=False, soft_wrap=False, width=width)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _complain(text: str) -> None:
    try:
        click.echo(f"error: {text}", err=True)
    except OSError:
        return


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
