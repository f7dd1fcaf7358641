"""Read pickled weights and write them as safetensors: run in a process of its own by `convert`.

torch's restricted unpickler builds tensors and plain containers, and refuses whatever would run code. The
process has a limit on its memory, so that a file that claims to be larger than it is harms nobody else.
"""

from __future__ import annotations

import json
import pickle
import re
import resource
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import psutil
import safetensors.torch
import torch

FORBIDDEN: Final = re.compile(r"GLOBAL (\S+)|Trying to (?!load)\w+")
"""How torch's unpickler says that a file asks for more than tensors."""


def convert_file(source: Path, destination: Path) -> dict[str, str]:
    """Convert a file, and return nothing or what is wrong: a kind, and the reason.

    The kinds are `code` (it would run some), `memory` (it needs more than there is) and `damaged`.
    """
    try:
        # Of a pickle that it may not understand torch warns first; what counts is what it says last.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            weights = _tensors(torch.load(source, map_location="cpu", weights_only=True))
        safetensors.torch.save_file(weights, destination, {"format": "pt"})
    except pickle.UnpicklingError as error:
        return _refusal(str(error))
    except MemoryError:
        return {"kind": "memory", "reason": ""}
    except Exception as error:
        kind = "memory" if "allocate memory" in str(error) else "damaged"
        return {"kind": kind, "reason": _first_line(error)}
    return {}


def main() -> None:
    """Convert one file after another: a line of stdin names it, a line of stdout says what came of it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    imported_bytes = psutil.Process().memory_info().vms
    for line in sys.stdin:
        request = json.loads(line)
        limit = imported_bytes + int(request["memory_bytes"])
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        answer = convert_file(Path(request["source"]), Path(request["destination"]))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _tensors(content: Any) -> dict[str, torch.Tensor]:
    """Return names and tensors, none of which shares memory with another: safetensors has no such thing."""
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no tensors by name")
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        kind = type(content[others[0]]).__name__
        raise ValueError(f"{others[0]!r} is a {kind}; only names and tensors can be converted")
    return {str(name): value.detach().clone().contiguous() for name, value in content.items()}


def _refusal(text: str) -> dict[str, str]:
    match = FORBIDDEN.search(text)
    if match is None:
        return {"kind": "damaged", "reason": "it is no pickle of tensors"}
    return {"kind": "code", "reason": match[1] or match[0]}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].partition(". This is")[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
