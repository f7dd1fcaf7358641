"""dev.py and the demonstration, as far as they can be tested without installing anything."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev.py, at home in a folder of its own, with commands recorded instead of run."""
    module = load(ROOT / "dev.py")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    venv = tmp_path / ".venv"
    values = {"ROOT": tmp_path, "VENV": venv, "BIN": venv / "bin", "STAMP": venv / "stamp"}
    for name, value in values.items():
        monkeypatch.setattr(module, name, value)
    calls: list[tuple[str, ...]] = []

    def call(*command: str | Path) -> int:
        calls.append(tuple(str(part) for part in command))
        venv.mkdir(exist_ok=True)
        return 0

    monkeypatch.setattr(module, "call", call)
    monkeypatch.setattr(module, "calls", calls, raising=False)
    return module


@pytest.mark.parametrize("script", ["dev.py", "examples/demo.py"])
def test_script_needs_the_standard_library_only(script: str) -> None:
    names = set()
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    assert names <= sys.stdlib_module_names


def test_torch_is_installed_first_and_alone(dev: ModuleType) -> None:
    dev.setup()
    venv, torch, rest = dev.calls
    assert venv[1:3] == ("-m", "venv")
    assert torch[-1].startswith("torch==")
    assert torch[-2] == "--quiet"
    assert "constraints.txt" in rest
    assert any(item.startswith("pytest") for item in rest)


def test_second_setup_does_nothing(dev: ModuleType) -> None:
    dev.setup()
    dev.calls.clear()
    dev.setup()
    assert dev.calls == []


def test_setup_runs_again_when_a_pin_changes(dev: ModuleType) -> None:
    dev.setup()
    dev.calls.clear()
    with (dev.ROOT / "constraints.txt").open("a") as file:
        file.write("click==8.1.0\n")
    dev.setup()
    assert dev.calls


def test_interrupted_setup_is_done_again(dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: str) -> None:
        raise dev.SetupError("no network")

    with monkeypatch.context() as patch:
        patch.setattr(dev, "install", fail)
        assert dev.main(["setup"]) == 1
    dev.calls.clear()
    assert dev.main(["setup"]) == 0
    assert len(dev.calls) == 3


def test_torchvision_fails_the_check(dev: ModuleType) -> None:
    assert dev.check_no_torchvision() == 0
    (dev.VENV / "lib/python3.11/site-packages/torchvision").mkdir(parents=True)
    assert dev.check_no_torchvision() == 1


def test_unknown_command_names_the_known_ones() -> None:
    asked = subprocess.run(
        [sys.executable, ROOT / "dev.py", "dmeo"], capture_output=True, text=True, check=False
    )
    assert asked.returncode == 2
    assert "demo" in asked.stderr


def test_makefile_offers_what_dev_offers(dev: ModuleType) -> None:
    targets = (ROOT / "Makefile").read_text().partition(".PHONY:")[2].splitlines()[0].split()
    assert set(targets) == set(dev.COMMANDS) - {"run"}


def test_demonstration_kills_in_the_middle_of_fuse() -> None:
    demo = load(ROOT / "examples" / "demo.py")
    stages = [
        {"op": "encode", "chunks": 4},
        {"op": "invert", "chunks": 5},
        {"op": "fuse", "chunks": 5},
        {"op": "decode", "chunks": 4},
    ]
    assert demo.chunks_until_kill(stages) == 4 + 5 + 2
    assert demo.chunks_until_kill(stages[:1]) == 2
