"""The command line: data on stdout, messages on stderr, one clear error and its exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from latentloom.cli import batches, models, recipes, runs, stores
from latentloom.errors import InterruptedRunError, LatentloomError
from latentloom.flows.environment import keep_heap_small
from latentloom.schemas.settings import read_settings


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LATENTLOOM"}
)
@click.version_option(package_name="latentloom")
@click.pass_context
def cli(context: click.Context) -> None:
    """Edit long videos with diffusion models, in chunks that are never lost."""
    context.obj = found = read_settings()
    context.default_map = dict.fromkeys(cli.commands, found.option_defaults())


_COMMANDS = (
    recipes.validate,
    recipes.plan,
    runs.run,
    runs.resume,
    runs.redo,
    runs.status,
    runs.why,
    runs.forget,
    runs.report,
    stores.verify,
    stores.prune,
    stores.du,
    stores.export,
    models.convert_model,
    recipes.init,
    batches.batch,
    batches.submit,
    batches.deploy,
    batches.serve,
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line; every outcome has its exit code."""
    debug = bool(os.environ.get("LATENTLOOM_DEBUG"))
    keep_heap_small()
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


def _complain(text: str) -> None:
    try:
        click.echo(f"error: {text}", err=True)
    except OSError:
        return
