"""Commands about archives: batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentloom.cli.options import config, json_option, make_console, print_json, store_option

if TYPE_CHECKING:
    from latentloom.flows.archive import Scan


@click.command()
@click.argument("batch", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--no-wait", is_flag=True, help="Exit 6 if another process works on this batch.")
@store_option
@json_option
def batch(batch: Path, dry_run: bool, no_wait: bool, store: str, as_json: bool) -> None:
    """Edit the videos of a batch file that are not done; exit 3 if some failed."""
    from latentloom.flows.archive import scan
    from latentloom.flows.launch_batch import launch_batch
    from latentloom.storage.store import Store

    opened = Store.open(store)
    roots, defaults = _confinement()
    scanned = scan(opened, batch, roots=roots, defaults=defaults)
    _show(scanned, as_json=as_json)
    if dry_run:
        if as_json:
            print_json(_facts(scanned))
        return
    facts, error = launch_batch(
        opened,
        batch,
        scanned,
        wait=not no_wait,
        roots=roots,
        defaults=defaults,
        write=lambda text: click.echo(text, err=True),
    )
    if as_json:
        print_json(facts)
    if error is not None:
        raise error


def _confinement() -> tuple[list[Path], dict[str, Any]]:
    from latentloom.schemas.settings import environment_roots

    found = config()
    roots = [*environment_roots(os.environ), *(Path(root) for root in found.roots)]
    return roots, found.recipe_defaults()


def _show(scanned: Scan, *, as_json: bool) -> None:
    from latentloom.flows.archive import describe
    from latentloom.report.tables import show_line, show_rows

    console = make_console(err=as_json)
    counts = [str(scanned.total), *(str(len(part)) for part in _parts(scanned).values())]
    show_rows(console, ("videos>", *(f"{name}>" for name in _parts(scanned))), [counts])
    for name, videos in _parts(scanned).items():
        if videos and name != "done":
            for line in describe(videos):
                show_line(console, f"{name}: {line}")
    for video in scanned.quarantined:
        show_line(console, f"quarantined: {video.source.uri}: {video.record.error}")


def _parts(scanned: Scan) -> dict[str, Any]:
    return {"done": scanned.done, "to do": scanned.todo, "quarantined": scanned.quarantined}


def _facts(scanned: Scan) -> dict[str, Any]:
    return {
        "batch": scanned.batch.name,
        "total": scanned.total,
        "done": len(scanned.done),
        "todo": [{"uri": v.source.uri, "output": v.output} for v in scanned.todo],
        "quarantined": [
            {"uri": v.source.uri, "error": v.record.error} for v in scanned.quarantined
        ],
    }
