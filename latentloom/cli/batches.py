"""Commands about archives and servers: batch, submit, deploy, serve."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latentloom.cli.options import (
    config,
    json_option,
    load,
    make_console,
    notify_options,
    overrides_argument,
    print_json,
    store_option,
)

if TYPE_CHECKING:
    from latentloom.flows.archive import Scan


queue_option = click.option(
    "--queue", metavar="NAME", help="Work queue of the pool, for some of its workers only."
)


@click.command()
@click.argument("batch", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--no-wait", is_flag=True, help="Exit 6 if another process works on this batch.")
@store_option
@json_option
@notify_options
def batch(
    batch: Path,
    dry_run: bool,
    no_wait: bool,
    store: str,
    as_json: bool,
    notify: Sequence[str],
    notify_on: str | None,
) -> None:
    """Edit the videos of a batch file that are not done; exit 3 if some failed."""
    from latentloom.flows.archive import scan
    from latentloom.flows.launch_batch import launch_batch
    from latentloom.flows.notify import notifying
    from latentloom.storage.store import Store

    opened = Store.open(store)
    roots, defaults = _confinement()
    scanned = scan(opened, batch, roots=roots, defaults=defaults)
    _show(scanned, as_json=as_json)
    if dry_run:
        if as_json:
            print_json(_facts(scanned))
        return
    with notifying(notify, notify_on):
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


machines_option = click.option(
    "--machines",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Workers of the pool that share the videos of a batch.",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@overrides_argument
@click.option("--deployment", metavar="FLOW/NAME", help="Where to hand it; by what the file is.")
@queue_option
@machines_option
@store_option
@json_option
def submit(
    file: Path,
    overrides: Sequence[str],
    deployment: str | None,
    queue: str | None,
    machines: int,
    store: str,
    as_json: bool,
) -> None:
    """Hand a recipe or batch to a deployment on a Prefect server, and print the run's id."""
    from latentloom.errors import UsageError
    from latentloom.flows.submit import EDIT_ARCHIVE, EDIT_VIDEO, submit_batch, submit_recipe
    from latentloom.schemas.load import is_batch, load_batch

    if is_batch(file):
        if overrides:
            raise UsageError(f"{file} is a batch; overrides are a field of it")
        load_batch(file)
        chosen = deployment or EDIT_ARCHIVE
        made = submit_batch(file, store, deployment=chosen, queue=queue, machines=machines)
    elif machines > 1:
        raise UsageError(f"{file} is a recipe; --machines shares the videos of a batch")
    else:
        made = submit_recipe(
            load(file, overrides), store, deployment=deployment or EDIT_VIDEO, queue=queue
        )
    click.echo(made.run or made.flow_run)
    follow = f"latentloom status {made.run or file} --store {store}"
    click.echo(f"flow run {made.name}: {made.url or made.flow_run}; follow: {follow}", err=True)
    if as_json:
        print_json({"run": made.run, "flow_run": made.flow_run, "url": made.url})


@click.command()
@click.argument("batch", type=click.Path(path_type=Path))
@click.option("--cron", help="Schedule in cron's notation, such as '0 2 * * *'.")
@click.option("--interval", type=float, metavar="SECONDS", help="Schedule by seconds.")
@click.option("--work-pool", default="latentloom", show_default=True, help="Whose workers run it.")
@queue_option
@machines_option
@store_option
def deploy(
    batch: Path,
    cron: str | None,
    interval: float | None,
    work_pool: str,
    queue: str | None,
    machines: int,
    store: str,
) -> None:
    """Deploy a batch on a schedule; a tick that finds the one before at work does nothing."""
    from latentloom.errors import UsageError
    from latentloom.flows.submit import schedule_batch
    from latentloom.schemas.load import load_batch

    if (cron is None) == (interval is None):
        raise UsageError("give exactly one of --cron and --interval")
    loaded, _ = load_batch(batch)
    name = schedule_batch(
        loaded,
        batch,
        store,
        cron=cron,
        interval_seconds=interval,
        work_pool=work_pool,
        queue=queue,
        machines=machines,
    )
    click.echo(name)
    click.echo(f"a worker runs it: prefect worker start --pool {work_pool}", err=True)


@click.command()
def serve() -> None:
    """Serve the deployments edit-video, edit-archive and prune-store from here until stopped."""
    from latentloom.flows.submit import serve as serve_deployments

    click.echo("serving edit-video, edit-archive and prune-store; Ctrl-C ends it", err=True)
    serve_deployments()


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
