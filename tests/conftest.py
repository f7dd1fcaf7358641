from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_config_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the config file of whoever runs the tests out of them."""
    folder: Path = tmp_path_factory.mktemp("config")
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CONFIG_HOME", str(folder))
    patch.delenv("LATENTLOOM_CONFIG", raising=False)
