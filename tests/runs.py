"""Small runs on stand-in models: a clip, a recipe, and a way to run it without Prefect."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from latentloom.flows.compile import compile_plan
from latentloom.flows.execute import execute
from latentloom.flows.resolve import resolve
from latentloom.flows.runs import register
from latentloom.media.write import write_video
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.storage.store import Store

STAGES: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "num_inference_steps": 2},
    {
        "op": "fuse",
        "tau": 1,
        "guidance_scale": 2.0,
        "sources": [{"model": "image"}, {"model": "video"}],
    },
    {"op": "decode"},
]


def make_clip(path: Path, num_frames: int = 24, *, size: int = 32, dtype: str = "uint8") -> Path:
    """Write a clip in which every frame is another picture; uint16 is written as 10 bits."""
    down, right, frame = np.mgrid[:size, :size, :num_frames].transpose(0, 3, 1, 2)
    pixels = np.stack([right * 4 + down * 3 + frame * 5, frame * 9, down * 6], axis=-1) % 256
    write_video(path, pixels.astype(dtype), Fraction(8))
    return path


def make_recipe_data(clip: Path, output: Path | None, **changes: Any) -> dict[str, Any]:
    """Return an FLDM recipe on stand-in models, with parts of it replaced."""
    data: dict[str, Any] = {
        "version": 1,
        "name": "small",
        "source": {"uri": str(clip)},
        "models": {
            "image": {"path": "embedded:standin/image"},
            "video": {"path": "embedded:standin/video"},
        },
        "prompts": {"source": "a", "target": "b"},
        "chunks": {"frames": 8},
        "windows": {"size": 8, "overlap": 2},
        "numerics": {"threads": 1, "device": "cpu"},
        "stages": STAGES,
    }
    if output is not None:
        data["output"] = {"uri": str(output), "segment_seconds": 1, **changes.pop("encoder", {})}
    return data | changes


def compile_small(store: Store, clip: Path, output: Path | None, **changes: Any) -> Plan:
    """Compile the recipe of ``make_recipe_data``."""
    recipe = validate_recipe(make_recipe_data(clip, output, **changes))
    return compile_plan(recipe, resolve(recipe, store))


def run_here(store: Store, plan: Plan, *, overwrite: bool = False) -> RunState:
    """Register a plan and run it in this process, without Prefect."""
    return execute(store, plan, register(store, plan, overwrite=overwrite))


def computed(state: RunState) -> dict[str, int]:
    """Return how many chunks each stage computed."""
    return {stage.name: stage.computed + stage.transient for stage in state.stages}
