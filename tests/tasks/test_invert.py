"""An inversion that starts where it ends is noise on the clean latents, and asks no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from latentloom.flows.inspect import describe_run
from latentloom.models.load import load_image_model
from latentloom.ops.noise import frame_noise
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks import invert as invert_task
from tests.models import tiny
from tests.runs import compile_small, make_clip, run_here

NUM_FRAMES, NUM_STEPS, SEED = 11, 4, 3
NOISED = {"op": "invert", "num_inference_steps": NUM_STEPS, "noise_start": NUM_STEPS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("invert")
    tiny.save_image_pipeline(root / "image")
    tiny.save_motion_adapter(root / "video")
    make_clip(root / "clip.mp4", NUM_FRAMES, size=16)
    return root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def compiled(folder: Path, store: Store, invert: dict[str, Any], **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "models": {name: {"path": f"{folder}/{name}"} for name in ("image", "video")},
        "windows": {"size": 4, "overlap": 2},
        "seed": SEED,
        "stages": [{"op": "encode"}, invert],
    }
    return compile_small(store, folder / "clip.mp4", None, **settings | changes)


def frames(store: Store, plan: Plan, stage: str = "invert") -> np.ndarray[Any, Any]:
    """Read a stage frame by frame; a frame that two windows have must be the same in both."""
    found: dict[int, np.ndarray[Any, Any]] = {}
    for chunk in plan.by_name[stage].chunks:
        for frame, array in zip(range(chunk.start, chunk.stop), store.read(chunk.key), strict=True):
            assert found.setdefault(frame, array).tobytes() == array.tobytes()
    return np.stack([found[frame] for frame in sorted(found)])


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_noise_start_at_the_end_adds_noise_and_asks_no_model(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, strength: float
) -> None:
    def ask(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(invert_task, "predict_with", ask)
    steps = int(NUM_STEPS * strength)
    plan = compiled(folder, store, NOISED | {"noise_start": steps, "strength": strength})
    state = run_here(store, plan)
    clean = torch.from_numpy(frames(store, plan, "encode"))
    channels, height, width = clean.shape[1:]
    noise = frame_noise(SEED, "invert", range(NUM_FRAMES), (channels, height, width))
    sampler = load_image_model(folder / "image").sampler(NUM_STEPS)
    expected = sampler.add_noise(clean, noise, steps)
    assert frames(store, plan).tobytes() == expected.numpy().tobytes()
    rows = {row["name"]: row for row in describe_run(store, state.run)["stages"]}
    assert rows["invert"]["done"] == rows["invert"]["chunks"] > 1


def test_noised_latents_are_the_same_in_windows_of_any_size_and_by_any_model(
    folder: Path, store: Store
) -> None:
    plans = [
        compiled(folder, store, NOISED),
        compiled(folder, store, NOISED, windows={"size": 8, "overlap": 3}),
        compiled(folder, store, NOISED | {"model": "image"}),
        compiled(folder, store, NOISED | {"model": "image"}, chunks={"frames": 3}),
    ]
    for plan in plans:
        run_here(store, plan)
    assert len({frames(store, plan).tobytes() for plan in plans}) == 1


def test_lost_windows_are_noised_to_the_same_bytes(folder: Path, store: Store) -> None:
    stages = [{"op": "encode"}, NOISED, {"op": "smooth"}]
    plan = compiled(folder, store, NOISED, stages=stages)
    run_here(store, plan)
    chunks = [chunk for name in ("invert", "smooth") for chunk in plan.by_name[name].chunks]
    expected = [store.read(chunk.key).tobytes() for chunk in chunks]
    for name in ("invert", "smooth"):
        for chunk in plan.by_name[name].chunks[1:3]:
            store.delete(chunk.key)
    state = run_here(store, plan)
    assert {stage.name: stage.computed for stage in state.stages}["invert"] == 2
    assert [store.read(chunk.key).tobytes() for chunk in chunks] == expected


def test_key_holds_the_seed_and_not_the_text(folder: Path, store: Store) -> None:
    def key(**changes: Any) -> str:
        invert = NOISED | changes.pop("invert", {})
        return compiled(folder, store, invert, **changes).by_name["invert"].chunks[0].key

    assert key() == key(prompts={"source": "c", "target": "d"})
    assert key() == key(invert={"guidance_scale": 3.0, "prompt": "negative"})
    assert key() != key(seed=SEED + 1)
    assert key(invert={"noise_start": 3}) != key(
        invert={"noise_start": 3}, prompts={"source": "c", "target": "d"}
    )
