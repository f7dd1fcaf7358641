"""The import contracts, and what must not be loaded for commands that should answer at once."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "prefect", "distributed", "av", "cv2"}


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "module",
    [
        "latentloom",
        "latentloom.cli.main",
        "latentloom.flows.compile",
        "latentloom.flows.engine",
        "latentloom.flows.resolve",
        "latentloom.tasks.stop",
    ],
)
def test_module_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*{HEAVY!r} & set(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (loaded.stdout.strip(), loaded.stderr) == ("", "")


def test_package_init_files_are_empty() -> None:
    inits = [path for path in (ROOT / "latentloom").rglob("__init__.py")]
    assert inits
    for path in inits:
        if path.parent.name != "latentloom":
            lines = [line for line in path.read_text().splitlines() if "import" in line.split()]
            assert lines == [], path
