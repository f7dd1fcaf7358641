"""The examples whose models work in time run on the embedded family: frames between frames, larger frames."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from latentloom.flows.compile import compile_plan
from latentloom.flows.resolve import resolve
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe
from latentloom.media.write import write_video
from latentloom.ops.metrics import psnr
from latentloom.schemas.load import load_recipe
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene, random_scene
from latentloom.storage.store import Store
from tests.runs import run_here

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, folder: Path, frames: NDArray[np.uint8], *overrides: str) -> FrameReader:
    """Run an example on frames; return what it made."""
    clip, output = folder / "clip.mp4", folder / "made.mp4"
    write_video(clip, frames, 8)
    texts = [f"source.uri={clip}", f"output.uri={output}", "numerics.threads=1", *overrides]
    recipe = load_recipe(EXAMPLES / f"{name}.yaml", texts)
    store = Store.open(str(folder / "store"))
    assert run_here(store, compile_plan(recipe, resolve(recipe, store))).state == "finished"
    return FrameReader(output, probe(output))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return next(
        s for s in map(random_scene, count(1_005_000)) if s.sprites[0].motion.kind == "swing"
    )


@pytest.fixture(scope="module")
def frames(scene: Scene) -> NDArray[np.uint8]:
    return render(scene, 13)


def test_interpolated_clip_shows_the_frames_that_were_left_out(
    tmp_path: Path, frames: NDArray[np.uint8]
) -> None:
    made = run("interpolate", tmp_path, frames[::4]).read(0, 16)
    assert made.shape == (16, 64, 64, 3)
    assert np.abs(made[:13].astype(float) - frames).mean(axis=(1, 2, 3)).max() < 12
    changed = np.abs(np.diff(made[:13].astype(float), axis=0)).mean(axis=(1, 2, 3))
    assert changed.min() > changed.max() / 20


def test_upsampled_clip_shows_the_same_at_twice_the_size(
    tmp_path: Path, scene: Scene, frames: NDArray[np.uint8]
) -> None:
    steps = "stages.upsample.num_inference_steps=4"
    made = run("upsample_video", tmp_path, frames[:10], steps).read(0, 10)
    assert made.shape == (10, 128, 128, 3)
    assert psnr(made, render(scene, 10, 128)).min() > 22
