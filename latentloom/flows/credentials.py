"""Credentials of stores from a block on the Prefect server, by name; a recipe never holds any."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

import httpx
from pydantic import JsonValue

from latentloom.errors import LatentloomError, UsageError
from latentloom.flows.environment import quiet_environment
from latentloom.schemas.settings import read_settings
from latentloom.storage.credentials import use_options

VARIABLE = "LATENTLOOM_CREDENTIALS"
"""Names the block, where no flag or parameter does."""


def use_credentials(block: str | None = None) -> None:
    """Open remote stores and sources with what a Secret block holds, here and in child processes.

    Args:
        block: Name of the block, a JSON object of fsspec options by scheme; by default the one that the
            environment or this machine's config file names, if any.

    Raises:
        UsageError: If the server has no such block, or it holds something else.
        LatentloomError: If the server cannot be reached.
    """
    name = block or os.environ.get(VARIABLE) or read_settings().credentials
    if not name:
        return
    quiet_environment()
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(f"credentials lie in block {name} of a server: set PREFECT_API_URL")
    from prefect.blocks.system import Secret

    try:
        # A coroutine only where an event loop runs.
        found = cast("Secret[JsonValue]", Secret.load(name)).get()
    except ValueError as error:
        raise UsageError(
            f"the server has no Secret block {name!r} with credentials; make it in its UI"
        ) from error
    except httpx.HTTPError as error:
        raise LatentloomError(
            f"the Prefect server cannot be asked for block {name} ({type(error).__name__}: {error});"
            " check PREFECT_API_URL"
        ) from error
    if not isinstance(found, Mapping):
        raise UsageError(f"block {name} has to hold a JSON object of options by scheme")
    use_options(found, source=f"block {name}")
