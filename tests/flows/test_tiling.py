"""Tiles in a recipe: what they are checked against, which keys they reach, what they save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.errors import RecipeError, ResourceError
from latentloom.flows.compile import compile_plan
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.facts import make_facts, make_recipe
from tests.models import tiny
from tests.runs import compile_small, make_clip, run_here

TILING = {"size": 32, "overlap": 8}


def plan(*, encode: Any = None, upsample: Any = None, decode: Any = None, **changes: Any) -> Plan:
    """Three stages over frames of 64 x 48 pixels, upsampled to 128 x 96."""
    stages = [
        {"op": "encode", "tiling": encode},
        {"op": "upsample", "tiling": upsample},
        {"op": "decode", "tiling": decode},
    ]
    return compile_plan(make_recipe(stages=stages, **changes), make_facts())


@pytest.mark.parametrize("op", ["encode", "upsample", "decode"])
def test_tiles_are_in_the_key_of_their_stage(op: str) -> None:
    tilings: dict[str, Any] = {op: TILING}
    assert plan(**tilings).by_name[op].key != plan().by_name[op].key


@pytest.mark.parametrize(("op", "size"), [("encode", 64), ("upsample", 128), ("decode", 128)])
def test_a_tile_that_holds_the_frame_changes_no_key(op: str, size: int) -> None:
    tilings: dict[str, Any] = {op: {"size": size}}
    assert plan(**tilings).by_name[op].chunks == plan().by_name[op].chunks


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        ({"size": 36}, "tiling.size 36 must be a multiple of 8.*choose 32 or 40"),
        ({"size": 32, "overlap": 6}, "tiling.overlap 6 must be a multiple of 8"),
    ],
)
def test_tiles_that_no_model_takes_are_refused(tiling: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(decode=tiling)


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(RecipeError, match="overlap 32 must be smaller than size 32"):
        plan(decode={"size": 32, "overlap": 32})


def test_a_plan_over_its_budget_fits_with_tiles() -> None:
    """Frames of 960 x 540, upsampled to 1920 x 1080, a few at a time."""
    changes: dict[str, Any] = {
        "source": {"uri": "/clips/clip.mp4", "size": {"width": 960, "height": 540}},
        "chunks": {"frames": 2},
        "numerics": {"micro_batch": 1},
        "limits": {"memory": "3GiB"},
        "output": None,
    }
    with pytest.raises(ResourceError, match="tiling"):
        plan(**changes)
    tiling = {"size": 256, "overlap": 32}
    tiled = plan(encode=tiling, upsample=tiling, decode=tiling, **changes)
    assert tiled.peak_bytes < 3 << 30


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_any_chunk_size_gives_the_same_bytes(tmp_path: Path, frames: int) -> None:
    tiny.save_image_pipeline(tmp_path / "image")
    tiny.save_upsampler(tmp_path / "upsample")
    tiling = {"size": 16, "overlap": 4}
    clip = make_clip(tmp_path / "clip.mp4", 8)
    found = []
    for size in (frames, 16):
        store = Store.open(str(tmp_path / f"store-{size}"))
        made = compile_small(
            store,
            clip,
            None,
            models={name: {"path": str(tmp_path / name)} for name in ("image", "upsample")},
            chunks={"frames": size},
            numerics={"threads": 1, "device": "cpu", "micro_batch": 2},
            stages=[
                {"op": "encode", "tiling": tiling},
                {"op": "upsample", "num_inference_steps": 2, "tiling": tiling},
                {"op": "decode", "keep": True, "tiling": tiling},
            ],
        )
        run_here(store, made)
        chunks = made.by_name["decode"].chunks
        found.append(np.concatenate([store.read(chunk.key) for chunk in chunks]).tobytes())
    assert found[0] == found[1]
