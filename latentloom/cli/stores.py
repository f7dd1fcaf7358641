"""Commands about a store: verify, prune, du, export."""

from __future__ import annotations

import click

from latentloom.cli.options import (
    json_option,
    make_console,
    open_store,
    print_json,
    store_option,
)


@click.command()
@click.option(
    "--repair", is_flag=True, help="Delete what is damaged, so that runs compute it again."
)
@store_option
@json_option
def verify(repair: bool, store: str, as_json: bool) -> None:
    """Read every chunk, and say what is damaged; exit 5 if anything is."""
    from latentloom.errors import StoreError
    from latentloom.storage.maintenance import verify as verify_store

    opened = open_store(store)
    found = verify_store(opened)
    for damage in found.damages:
        click.echo(f"{damage.kind} {damage.path}: {damage.detail}", err=True)
    click.echo(f"{found.checked} chunks, {found.bytes} bytes checked, {len(found.damages)} damaged")
    if as_json:
        damages = [
            {"kind": d.kind, "key": d.key, "path": d.path, "detail": d.detail}
            for d in found.damages
        ]
        print_json({"checked": found.checked, "bytes": found.bytes, "damages": damages})
    for key in {damage.key for damage in found.damages if repair and damage.key}:
        opened.delete(key)
    if found.damages:
        what_now = "deleted; run the recipes again" if repair else "--repair deletes them"
        raise StoreError(f"{len(found.damages)} damaged: {what_now}")


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@store_option
@json_option
def prune(dry_run: bool, store: str, as_json: bool) -> None:
    """Delete chunks that no registered run needs, and what killed runs left; nothing under a day old."""
    from latentloom.flows.inspect import kept_keys
    from latentloom.schemas.base import readable
    from latentloom.storage.maintenance import prune as prune_store

    opened = open_store(store)
    pruned = prune_store(opened, keep=kept_keys(opened), dry_run=dry_run)
    freed = sum(removed.bytes for removed in pruned.removed)
    for removed in pruned.removed:
        click.echo(f"{removed.kind} {removed.path} {removed.bytes}")
    verb = "would free" if dry_run else "freed"
    click.echo(f"{verb} {readable(freed)} in {len(pruned.removed)} pieces", err=True)
    if as_json:
        print_json({"removed": len(pruned.removed), "bytes": freed, "dry_run": dry_run})


@click.command()
@store_option
@json_option
def du(store: str, as_json: bool) -> None:
    """Show what the store holds, by kind."""
    from latentloom.report.tables import show_rows
    from latentloom.schemas.base import readable
    from latentloom.storage.maintenance import usage

    used = usage(open_store(store))
    rows = [[kind, str(item.files), readable(item.bytes)] for kind, item in used.items()]
    show_rows(make_console(err=as_json), ("kind", "files>", "bytes>"), rows)
    if as_json:
        print_json({kind: {"files": i.files, "bytes": i.bytes} for kind, i in used.items()})


@click.command()
@click.argument("run_id", metavar="RUN")
@click.argument("stage")
@click.argument("destination")
@store_option
def export(run_id: str, stage: str, destination: str, store: str) -> None:
    """Write what a stage made as one Zarr array."""
    from latentloom.flows.inspect import export_run_stage

    export_run_stage(open_store(store), run_id, stage, destination)
    click.echo(f"wrote {destination}", err=True)
