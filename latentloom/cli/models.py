"""Commands about models: convert-model."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from latentloom.cli.options import json_option, print_json


@click.command("convert-model")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", type=click.Path(path_type=Path))
@json_option
def convert_model(source: Path, destination: Path, as_json: bool) -> None:
    """Rewrite a model's pickled weights (.bin) as safetensors; exit 8 if one would run code."""
    from latentloom.models import convert

    report = functools.partial(click.echo, err=True)
    written = convert.convert_model(source, destination, write=report)
    click.echo(f"wrote {destination}; set models.*.path to it", err=True)
    if as_json:
        print_json({"folder": str(destination), "weights": [str(path) for path in written]})
