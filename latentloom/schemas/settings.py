"""What holds for every command of a user or a machine: the config file, and the environment above it.

A flag beats the environment, the environment the recipe, the recipe the config file, and that the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import ByteSize, Field, SecretStr, ValidationError

from latentloom.errors import UsageError
from latentloom.schemas.base import Schema
from latentloom.schemas.yaml import plain, read_yaml

CONFIG = "LATENTLOOM_CONFIG"
"""Variable that names the config file."""
NOTIFY = "LATENTLOOM_NOTIFY"
"""Variable with the addresses to notify, separated by spaces."""
NOTIFY_ON = "LATENTLOOM_NOTIFY_ON"
"""Variable: ``always`` or ``failure``."""
DEVICE_SLOT = "LATENTLOOM_DEVICE_SLOT"
"""Variable above ``device_slot``."""
SCHEDULER = "LATENTLOOM_SCHEDULER"
"""Variable above ``scheduler``."""
IN_RECIPES = {
    "LATENTLOOM_DEVICE": "numerics.device",
    "LATENTLOOM_MEMORY": "limits.memory",
    "LATENTLOOM_DISK": "limits.disk",
}
"""Variables that stand above a recipe, and the field of it that each stands above."""


class Settings(Schema):
    """The config file, every field of it optional."""

    store: str | None = Field(default=None, min_length=1)
    """Where chunks and runs lie: a path or an fsspec URI."""
    workers: int | None = Field(default=None, ge=1, le=256)
    """Worker processes of a run."""
    credentials: str | None = Field(default=None, min_length=1)
    """Name of a Secret block on the Prefect server with options for remote files."""
    scheduler: str | None = Field(default=None, min_length=1)
    """Address of a Dask scheduler whose workers run the task groups, such as ``tcp://10.0.0.5:8786``."""
    routes: dict[str, str] = Field(default_factory=dict)
    """Resource that workers must have, by name of a stage or op."""
    device_slot: str | None = Field(default=None, min_length=1)
    """Name of the concurrency limit of this machine's device; by host and device if it has none."""
    roots: tuple[str, ...] = ()
    """More folders that recipes may point into."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """Device of recipes that name none."""
    memory: ByteSize | None = None
    """Peak memory that plans may use, where the recipe sets no limit."""
    disk: ByteSize | None = None
    """Bytes of the store that plans may use, where the recipe sets no limit."""
    notify: tuple[SecretStr, ...] = ()
    """Who is told how runs and batches ended: webhooks and apprise URLs."""
    notify_on: Literal["always", "failure"] = "always"
    """Whether they are told of every end or only of failures."""

    def option_defaults(self) -> dict[str, Any]:
        """Return the values of command-line options."""
        return {
            name: value
            for name in ("store", "credentials", "workers", "scheduler")
            if (value := getattr(self, name)) is not None
        }

    def recipe_defaults(self) -> dict[str, Any]:
        """Return what a recipe says that does not say otherwise."""
        fields: dict[str, dict[str, Any]] = {
            "numerics": {"device": self.device},
            "limits": {"memory": self.memory, "disk": self.disk},
        }
        given = {
            section: {name: value for name, value in values.items() if value is not None}
            for section, values in fields.items()
        }
        return {section: values for section, values in given.items() if values}


def read_settings() -> Settings:
    """Read the config file: the one that ``LATENTLOOM_CONFIG`` names, or the user's own if there is one.

    Raises:
        UsageError: If it is missing though named, or wrong.
    """
    named = os.environ.get(CONFIG)
    path = Path(named or Path(click.get_app_dir("latentloom")) / "config.yaml")
    return Settings() if named is None and not path.exists() else load_settings(path)


def load_settings(path: Path) -> Settings:
    """Read a config file.

    Args:
        path: YAML; relative paths in it are relative to its folder.

    Raises:
        UsageError: If it is missing though required, or wrong; it names every wrong field.
    """
    document = read_yaml(path)
    data = plain(document) if document is not None else {}
    if not isinstance(data, Mapping):
        raise UsageError(f"{path}: a config file is a mapping, such as `store: /data/latentloom`")
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        known = ", ".join(Settings.model_fields)
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False)
        ]
        raise UsageError("\n".join([*faults, f"settings are: {known}"])) from error
    return settings.model_copy(update=_absolute(settings, path.resolve().parent))


def environment_overrides(environment: Mapping[str, str]) -> list[str]:
    """Return the ``key=value`` overrides that the environment asks for."""
    return [f"{key}={environment[name]}" for name, key in IN_RECIPES.items() if name in environment]


def environment_roots(environment: Mapping[str, str]) -> list[Path]:
    """Return the folders that ``LATENTLOOM_ROOTS`` lists."""
    listed = environment.get("LATENTLOOM_ROOTS", "").split(os.pathsep)
    return [Path(root) for root in listed if root]


def _absolute(settings: Settings, folder: Path) -> dict[str, Any]:
    update: dict[str, Any] = {"roots": tuple(str(folder / root) for root in settings.roots)}
    if settings.store is not None and "://" not in settings.store:
        update["store"] = str(folder / settings.store)
    return update
