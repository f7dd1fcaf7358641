"""What commands share: options, and the way from a recipe file to a plan."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from latentloom.schemas.plan import Plan
    from latentloom.schemas.recipe import Recipe
    from latentloom.schemas.settings import Settings
    from latentloom.storage.store import Store

Command = Callable[..., Any]

_CREDENTIALS = "LATENTLOOM_CREDENTIALS"


def store_option(command: Command) -> Command:
    """Add the option that names a store, and the one that says how to open a remote one."""
    named = click.option(
        "--store",
        default=".latentloom",
        show_default=True,
        envvar="LATENTLOOM_STORE",
        help="Where chunks and runs lie: a path or an fsspec URI.",
    )
    credentials = click.option(
        "--credentials",
        metavar="BLOCK",
        envvar=_CREDENTIALS,
        expose_value=False,
        callback=_use_credentials,
        help="Secret block of the Prefect server with options for remote files.",
    )
    return named(credentials(command))


def _use_credentials(_context: click.Context, _option: click.Parameter, block: str | None) -> None:
    if block:
        from latentloom.flows.credentials import use_credentials

        # Those who hand work over name the block, too; nobody hands over what is in it.
        os.environ[_CREDENTIALS] = block
        use_credentials(block)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="End stdout with one JSON object."
)
recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def run_options(command: Command) -> Command:
    """Add the options of commands that run a plan."""
    options = [
        store_option,
        click.option(
            "--workers",
            type=click.IntRange(1, 256),
            default=1,
            show_default=True,
            help="Worker processes of a local Dask cluster; 1 is this process.",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            envvar="LATENTLOOM_SCHEDULER",
            help="Dask scheduler whose workers are used instead, such as tcp://10.0.0.5:8786.",
        ),
        click.option("--no-wait", is_flag=True, help="Exit 6 if another process runs this plan."),
        click.option("--overwrite", is_flag=True, help="Replace an output that is not ours."),
        click.option(
            "--until-step",
            metavar="[STAGE:]N",
            help="Stop after N steps of a stage, by default the last one that denoises; without it the"
            " same command goes on from there.",
        ),
        click.option(
            "--preview",
            is_flag=True,
            help="Write <output>.preview.png: what every shot is about to become.",
        ),
        json_option,
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def notify_options(command: Command) -> Command:
    """Add the options of commands that tell people how they ended."""
    options = [
        click.option(
            "--notify",
            multiple=True,
            metavar="URL",
            help="Whom to tell how it ended: a webhook or an apprise URL; may be given more than once.",
        ),
        click.option(
            "--notify-on",
            type=click.Choice(["always", "failure"]),
            help="What to tell them: every end (the default) or failures only.",
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def compile_recipe_file(recipe: Path, overrides: Sequence[str], store: str) -> tuple[Store, Plan]:
    """Load a recipe, look up what it names, and compile it."""
    from latentloom.flows.compile import compile_plan
    from latentloom.flows.resolve import resolve
    from latentloom.storage.store import Store

    loaded = load(recipe, overrides)
    opened = Store.open(store)
    return opened, compile_plan(loaded, resolve(loaded, opened))


def load(path: Path, overrides: Sequence[str]) -> Recipe:
    """Load a recipe under the settings in force; overrides of the command line come last."""
    from latentloom.schemas.load import load_recipe
    from latentloom.schemas.settings import environment_overrides, environment_roots

    found = config()
    return load_recipe(
        path,
        [*environment_overrides(os.environ), *overrides],
        roots=[*environment_roots(os.environ), *(Path(root) for root in found.roots)],
        defaults=found.recipe_defaults(),
    )


def config() -> Settings:
    """Return the config file's settings, as the command group read them."""
    from latentloom.schemas.settings import Settings

    return click.get_current_context().find_object(Settings) or Settings()


def open_store(store: str) -> Store:
    """Open a store that exists."""
    from latentloom.storage.store import Store

    return Store.open(store, create=False)


def make_console(*, err: bool) -> Console:
    """Return where tables go."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(stderr=err, highlight=False, soft_wrap=False, width=width)


def print_json(value: Any) -> None:
    """Print the JSON object that ends stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))
