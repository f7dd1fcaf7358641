"""Commands about a recipe: validate, plan, init."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from latentloom.flows.need import Need
    from latentloom.schemas.plan import Plan

from latentloom.cli.options import (
    compile_recipe_file,
    json_option,
    load,
    make_console,
    overrides_argument,
    print_json,
    recipe_argument,
    store_option,
)


@click.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate(recipes: Sequence[Path]) -> None:
    """Check recipes and batches; nothing is looked up."""
    from latentloom.errors import RecipeError

    faults: list[str] = []
    for path in recipes:
        try:
            click.echo(f"{path}: ok, {_contents(path)}", err=True)
        except RecipeError as error:
            faults.extend(error.faults)
    if faults:
        raise RecipeError(faults)


@click.command()
@recipe_argument
@overrides_argument
@store_option
@json_option
def plan(recipe: Path, overrides: Sequence[str], store: str, as_json: bool) -> None:
    """Show what a recipe would compute: chunks, hits, memory and bytes."""
    from latentloom.flows.need import find_need
    from latentloom.flows.recommend import recommend
    from latentloom.report.tables import show_line, show_plan

    opened, compiled = compile_recipe_file(recipe, overrides, store)
    published = _is_published(compiled)
    present = opened.present(list(compiled.keys()))
    need = find_need(compiled, present, published=published, look=opened.present)
    hits = {
        stage.name: sum(chunk.key in present for chunk in stage.chunks) for stage in compiled.stages
    }
    console, advice = make_console(err=as_json), recommend(compiled)
    show_plan(console, compiled, need, hits)
    if advice is not None:
        show_line(console, advice.line)
    if as_json:
        facts = _plan_facts(compiled, need, hits, published=published)
        print_json(facts | {"recommended": None if advice is None else advice.facts()})


@click.command()
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


def _contents(path: Path) -> str:
    """Check a recipe or batch, and say what it holds."""
    from latentloom.schemas.load import is_batch, load_batch

    if is_batch(path):
        loaded, _ = load_batch(path)
        return f"batch {loaded.name}"
    return f"{len(load(path, ()).stages)} stages"


def _plan_facts(
    compiled: Plan, need: Need, hits: dict[str, int], *, published: bool
) -> dict[str, Any]:
    stages = [
        {
            "op": stage.op,
            "name": stage.name,
            "key": stage.key,
            "chunks": len(stage.chunks),
            "hits": hits[stage.name],
            "needed": len(need[stage.name]),
            "computes": need.num_computed(stage.name),
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
