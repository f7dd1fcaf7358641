"""Options of remote file systems, credentials among them: of this process and the ones that it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import fsspec.config
from pydantic import JsonValue

from latentloom.errors import UsageError
from latentloom.storage.localize import SCHEMES


def use_options(options: Mapping[str, JsonValue], *, source: str) -> None:
    """Open remote files with these options from now on, wherever the environment sets none of its own.

    Child processes read them from the environment, where fsspec looks for ``FSSPEC_<SCHEME>``.

    Args:
        options: By scheme, such as ``{"s3": {"key": ..., "secret": ..., "endpoint_url": ...}}``.
        source: Where they come from, for errors, which show none of them.

    Raises:
        UsageError: If they are not of that form.
    """
    for scheme, chosen in options.items():
        if scheme not in SCHEMES or not isinstance(chosen, Mapping):
            raise UsageError(
                f'{source} has to hold options by scheme, such as {{"s3": {{"key": ..., "secret": ...}}}};'
                f" schemes are {', '.join(sorted(SCHEMES))}"
            )
        os.environ[f"FSSPEC_{scheme.upper()}"] = json.dumps(chosen)
        fsspec.config.conf[scheme] = dict(chosen)
