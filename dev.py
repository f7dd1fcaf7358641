#!/usr/bin/env python3
"""Set up, check, test and demonstrate latentloom: ``python3 dev.py COMMAND [ARGUMENT ...]``.

setup   make .venv with everything in it; every other command does so first if need be
demo    edit a small video, kill the run half way, resume it
test    run the tests; arguments go to pytest (-m slow runs the slow ones)
check   lint, formatting, types and import contracts
fix     repair lint and formatting where a tool can
run     run a program of the environment: dev.py run latentloom --help

Standard library only: this file runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "latentloom-setup"
CHECKED = ("latentloom", "tests", "benchmarks", "training", "examples", "dev.py")
UNTYPED = ("training",)  # scripts over diffusers, most of whose classes have no types


class SetupError(Exception):
    """The environment cannot be made; the text says what to do."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"dev.py: no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        setup()
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    try:
        return COMMANDS[name](rest)
    except KeyboardInterrupt:
        return 130


# Commands


def command_setup(_arguments: Sequence[str]) -> int:
    """Say where things are; `main` has made them."""
    print(f"Ready: {BIN / 'latentloom'}")
    return 0


def command_demo(arguments: Sequence[str]) -> int:
    """Run the demonstration."""
    return call(BIN / "python", "examples/demo.py", *arguments)


def command_test(arguments: Sequence[str]) -> int:
    """Run pytest in two processes; its own exit code 5 says that nothing was selected."""
    # Two processes of two torch threads on two cores: threads that wait must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return call(BIN / "python", "-m", "pytest", "-n", "2", "--dist", "worksteal", *arguments)


def command_check(_arguments: Sequence[str]) -> int:
    """Run every check, also after one has failed, and name those that did."""
    paths = checked_paths()
    checks: dict[str, Callable[[], int]] = {
        "ruff check": lambda: call(BIN / "ruff", "check", *paths),
        "ruff format": lambda: call(BIN / "ruff", "format", "--check", *paths),
        "mypy": lambda: call(BIN / "python", "-m", "mypy", *(p for p in paths if p not in UNTYPED)),
        "import contracts": lambda: call(BIN / "lint-imports"),
        "no torchvision": check_no_torchvision,
    }
    failed = []
    for name, check in checks.items():
        print(f"== {name}", flush=True)
        if check() != 0:
            failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0


def command_fix(_arguments: Sequence[str]) -> int:
    """Let ruff repair and format."""
    paths = checked_paths()
    call(BIN / "ruff", "check", "--fix", "--quiet", *paths)
    return call(BIN / "ruff", "format", *paths)


def command_run(arguments: Sequence[str]) -> int:
    """Run a program of the environment."""
    if not arguments:
        print("dev.py run: name a program, such as latentloom", file=sys.stderr)
        return 2
    program = BIN / arguments[0]
    return call(program if program.exists() else arguments[0], *arguments[1:])


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "setup": command_setup,
    "demo": command_demo,
    "test": command_test,
    "check": command_check,
    "fix": command_fix,
    "run": command_run,
}


def checked_paths() -> list[str]:
    """List what the tools look at, as far as it is there."""
    return [name for name in CHECKED if (ROOT / name).is_file() or has_python(ROOT / name)]


def has_python(folder: Path) -> bool:
    """Look for at least one module: tools reject a folder without any."""
    return next(folder.rglob("*.py"), None) is not None


def check_no_torchvision() -> int:
    """Refuse torchvision, whose presence breaks transformers beside this torch."""
    found = list(VENV.glob("lib/python*/site-packages/torchvision"))
    if found:
        print(f"{found[0]} breaks transformers; run: .venv/bin/pip uninstall torchvision")
    return len(found)


# Environment


def setup() -> None:
    """Make .venv what pyproject.toml and constraints.txt ask for, unless it is so already."""
    if sys.version_info < (3, 11):  # noqa: UP036  (whoever runs this may have an older one)
        raise SetupError(f"Python 3.11 or later is needed, this is {sys.version.split()[0]}")
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    print("Setting up .venv; the first time takes some minutes.", flush=True)
    # Without its stamp a half-made environment is set up again.
    STAMP.unlink(missing_ok=True)
    make_venv()
    # torch comes first and alone: later packages then accept this build of it.
    install(pinned("torch"))
    install("-c", "constraints.txt", "-e", ".", *dev_requirements())
    if check_no_torchvision():
        raise SetupError("torchvision is installed")
    STAMP.write_text(wanted)


def fingerprint() -> str:
    """Hash all that decides what lies in the environment."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {VENV}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_venv() -> None:
    """Create .venv, anew if a working pip of this Python version is not in it."""
    if not is_usable():
        shutil.rmtree(VENV, ignore_errors=True)
        if call(sys.executable, "-m", "venv", str(VENV)) != 0:
            raise SetupError("python -m venv failed; on Debian, install python3-venv")


def is_usable() -> bool:
    """Ask the environment's own Python for its version and its pip."""
    question = "import pip, sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [BIN / "python", "-c", question], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return answer.stdout.split() == [str(part) for part in sys.version_info[:2]]


def install(*arguments: str) -> None:
    """Let pip install something."""
    pip = (BIN / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    if call(*pip, *arguments) != 0:
        raise SetupError("pip could not install what is needed; run the same command again")


def pinned(name: str) -> str:
    """Return the requirement of constraints.txt for a package."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.strip()
    raise SetupError(f"constraints.txt names no version of {name}")


def dev_requirements() -> list[str]:
    """Read the dev group, which the pip of a fresh environment may not know."""
    import tomllib  # not in the Python that setup refuses

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements: list[str] = project["dependency-groups"]["dev"]
    return requirements


def call(*command: str | Path) -> int:
    """Run a program in the checkout and return its exit code."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    environment = {**os.environ, "VIRTUAL_ENV": str(VENV), "PATH": path}
    try:
        return subprocess.run([str(part) for part in command], cwd=ROOT, env=environment).returncode
    except FileNotFoundError:
        print(f"dev.py: {command[0]} is not there", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
