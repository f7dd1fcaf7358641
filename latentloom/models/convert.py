"""Rewrite a model's pickled weights as safetensors, in the same folder layout.

Pickles are read in a child process (see `unpickle`); this one never opens them, and does not import torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from latentloom.errors import ModelError, PolicyError, ResourceError, UsageError
from latentloom.schemas.base import readable

COPIED = {".json", ".txt", ".model", ".safetensors"}
"""Suffixes of configurations, tokenizers, and weights that are safe already."""
INDEX = ".bin.index.json"
"""Ends the name of the file that says which shard has which weight."""
SPARE_BYTES = 1 << 30
"""Memory that a child may use for a file, beside three times the file's size."""


def convert_model(
    source: Path, destination: Path, *, write: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write a model folder in which every `.bin` has become a `.safetensors`.

    Args:
        source: A model's folder in diffusers' layout, or one component's.
        destination: The new folder; appears when it is whole.
        write: Takes a line for each file.

    Returns:
        The weights that were written.

    Raises:
        UsageError: If there is nothing to convert, or the destination exists.
        PolicyError: If a file would run code when it is loaded.
        ModelError: If a file is damaged or holds other things than tensors.
        ResourceError: If a file needs more memory than its size explains.
    """
    pickled = _pickled(source)
    if destination.exists() or destination.is_symlink():
        raise UsageError(f"{destination} exists; give a folder that does not")
    destination.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        for path in sorted(source.rglob("*")):
            if path.is_file() and path.suffix in COPIED:
                _copy(path, unfinished / path.relative_to(source))
        inner = [path.relative_to(source) for path in pickled]
        made = [path.with_name(safetensors_name(path.name)) for path in inner]
        with _Child() as child:
            for path, name in zip(pickled, made, strict=True):
                child.convert(path, unfinished / name)
                write(f"converted {name.parent / path.name} ({readable(path.stat().st_size)})")
        unfinished.chmod(0o755)
        unfinished.rename(destination)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [destination / name for name in made]


def safetensors_name(name: str) -> str:
    """Return what diffusers and transformers call a weights file, or an index of shards, as safetensors.

    Examples:
        >>> safetensors_name("diffusion_pytorch_model.fp16.bin")
        'diffusion_pytorch_model.fp16.safetensors'
        >>> safetensors_name("pytorch_model-00001-of-00002.bin")
        'model-00001-of-00002.safetensors'
    """
    name = re.sub(r"^pytorch_model(?=[.-])", "model", name)
    return re.sub(r"\.bin(?=$|\.index\.json$)", ".safetensors", name)


def _pickled(source: Path) -> list[Path]:
    if not source.is_dir():
        raise UsageError(f"{source} is no folder; give a model's folder in diffusers' layout")
    found = sorted(path for path in source.rglob("*.bin") if path.is_file())
    pickled = [path for path in found if not path.with_name(safetensors_name(path.name)).exists()]
    if pickled:
        return pickled
    if any(source.rglob("*.safetensors")):
        raise UsageError(f"{source} has safetensors weights already; use it as it is")
    raise UsageError(
        f"{source} holds no .bin weights; a single .ckpt file is first taken apart with diffusers'"
        " scripts/convert_original_stable_diffusion_to_diffusers.py"
    )


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not path.name.endswith(INDEX):
        shutil.copyfile(path, target)
        return
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    shards = {key: safetensors_name(name) for key, name in index.get("weight_map", {}).items()}
    target = target.with_name(safetensors_name(target.name))
    target.write_text(json.dumps({**index, "weight_map": shards}, indent=2), encoding="utf-8")


class _Child:
    """The process that reads pickles, one after another."""

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "latentloom.models.unpickle"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=_environment(os.environ),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def convert(self, path: Path, target: Path) -> None:
        """Convert a file.

        Raises:
            PolicyError: If it would run code.
            ModelError: If it is damaged.
            ResourceError: If it needs too much memory.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        size = path.stat().st_size
        memory_bytes = SPARE_BYTES + 3 * size
        answer = self._ask(
            source=str(path.absolute()),
            destination=str(target.absolute()),
            memory_bytes=memory_bytes,
        )
        kind, reason = answer.get("kind"), answer.get("reason")
        if kind == "code":
            raise PolicyError(
                f"{path} asks to run code when it is loaded ({reason}); refused. Delete it, and take"
                " the model from somebody who publishes safetensors"
            )
        if kind == "memory":
            raise ResourceError(
                f"{path} of {readable(size)} needs more than {readable(memory_bytes)} of memory to"
                " load; it is damaged, or made to fill memory"
            )
        if kind is not None:
            raise ModelError(f"{path} cannot be converted: {reason}; fetch or copy it again")

    def _ask(self, **request: str | int) -> dict[str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, str] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            reason = said[-1] if said else f"exit status {code}"
            return {"kind": "crashed", "reason": f"the process that read it ended ({reason})"}
        return answer


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Let the child import what this process imports."""
    return {**environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
