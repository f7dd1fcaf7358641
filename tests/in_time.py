"""Interpolation and temporal upsampling of tiny networks: models, a clip and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.models import tiny
from tests.runs import compile_small, make_clip

NUM_FRAMES = 7
NUM_STEPS = 2
INTERPOLATE = {"op": "interpolate", "num_inference_steps": NUM_STEPS}
UPSAMPLE = {"op": "upsample", "model": "upsample_video", "num_inference_steps": NUM_STEPS}


def save_models(folder: Path) -> Path:
    """Write the networks, and a clip of seven frames."""
    tiny.save_image_pipeline(folder / "image")
    tiny.save_interpolator(folder / "interpolate")
    tiny.save_upsampler(folder / "upsample")
    tiny.save_motion_adapter(folder / "upsample_video", seed=3)
    make_clip(folder / "clip.mp4", NUM_FRAMES, size=16)
    return folder


def compile_in_time(
    store: Store,
    folder: Path,
    *stages: dict[str, Any],
    output: Path | None = None,
    clip: str = "clip.mp4",
    **changes: Any,
) -> Plan:
    """Compile a recipe that encodes the clip and runs stages; with an output if one is named."""
    names = ("image", "interpolate", "upsample", "upsample_video")
    models: dict[str, dict[str, str]] = {name: {"path": f"{folder}/{name}"} for name in names}
    models["upsample_video"]["base"] = "upsample"
    settings = {"models": models, "windows": {}} | changes
    return compile_small(
        store, folder / clip, output, stages=[{"op": "encode"}, *stages], **settings
    )


def read(store: Store, plan: Plan, stage: str) -> np.ndarray[Any, Any]:
    """Return what a stage's chunks hold, one behind the other."""
    chunks = plan.by_name[stage].chunks
    return np.concatenate([store.read(chunk.key) for chunk in chunks])
