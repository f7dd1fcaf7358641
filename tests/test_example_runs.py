"""The examples run on the embedded models: few frames, few steps."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from latentloom.flows.compile import compile_plan
from latentloom.flows.resolve import resolve
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe
from latentloom.schemas.edits import EditStage
from latentloom.schemas.load import load_recipe
from latentloom.storage.store import Store
from tests.runs import run_here

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NUM_FRAMES = 4
NAMES = [
    "fldm",
    "bivdiff",
    "upsample",
    "img2img",
    "controlnet",
    "t2i_adapter",
    "from_maps",
    "inpaint",
    "outpaint",
    "text_map_mask",
    "frames",
    "prompt2prompt",
    "instruct",
    "long",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip and its maps."""
    folder = tmp_path_factory.mktemp("example")
    runpy.run_path(str(EXAMPLES / "sprite_maps.py"))["write_maps"](folder, NUM_FRAMES)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_example_edits_every_frame(folder: Path, name: str) -> None:
    path, output = EXAMPLES / f"{name}.yaml", folder / f"{name}.mp4"
    recipe = load_recipe(path)
    overrides = [
        f"source.uri={folder / 'clip.mp4'}",
        f"output.uri={output}",
        "numerics.threads=1",
        f"numerics.micro_batch={NUM_FRAMES}",
        *(f"maps.{key}.uri={folder / Path(side.uri).name}" for key, side in recipe.maps.items()),
        *(
            f"stages.{stage.name}.num_inference_steps=2"
            for stage in recipe.stages
            if isinstance(stage, EditStage) or stage.op in ("invert", "upsample")
        ),
        *(f"stages.{stage.name}.tau=1" for stage in recipe.stages if stage.op == "fuse"),
    ]
    recipe = load_recipe(path, overrides)
    store = Store.open(str(folder / "store"))
    assert run_here(store, compile_plan(recipe, resolve(recipe, store))).state == "finished"
    edited = FrameReader(output, probe(output)).read(0, NUM_FRAMES)
    source = FrameReader(folder / "clip.mp4", probe(folder / "clip.mp4")).read(0, NUM_FRAMES)
    scale = 2 if name == "upsample" else 1
    source = source.repeat(scale, axis=1).repeat(scale, axis=2)
    assert edited.shape == source.shape
    assert np.abs(edited.astype(int) - source).mean() > 1
