"""Interpolation and temporal upsampling of tiny networks, from a clip to a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from latentloom.models.dependents import load_interpolator
from latentloom.models.load import load_image_model
from latentloom.ops.blend import blend
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.in_time import (
    INTERPOLATE,
    NUM_FRAMES,
    NUM_STEPS,
    UPSAMPLE,
    compile_in_time,
    read,
    save_models,
)
from tests.runs import run_here


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("in_time"))


def run(folder: Path, store: Store, *stages: dict[str, Any], **changes: Any) -> Plan:
    """Encode the clip and run stages; with an output if one is named."""
    plan = compile_in_time(store, folder, *stages, **changes)
    run_here(store, plan)
    return plan


def test_new_frames_come_between_the_old_ones_and_the_last_one_is_held(
    folder: Path, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = run(folder, store, INTERPOLATE)
    keys, made = read(store, plan, "encode"), read(store, plan, "interpolate")
    assert made.shape == (28, *keys.shape[1:])
    assert np.array_equal(made[::4], keys)
    assert np.array_equal(made[25:], keys[[6, 6, 6]])

    image = load_image_model(folder / "image")
    model = load_interpolator(folder / "interpolate", base=image)
    first, last = torch.from_numpy(keys[2]), torch.from_numpy(keys[3])
    wanted = model.between(first, last, image.text.encode(["b"]), NUM_STEPS)
    assert np.abs(made[9:12] - wanted.numpy()).max() < 1e-5


def test_any_chunking_gives_the_same_frames(folder: Path, tmp_path: Path) -> None:
    results = []
    for frames in (4, 8, 64):
        store = Store.open(str(tmp_path / f"store{frames}"))
        plan = run(folder, store, INTERPOLATE, chunks={"frames": frames})
        results.append(read(store, plan, "interpolate"))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_interpolating_twice_makes_sixteen_frames_of_one_in_any_chunking(
    folder: Path, tmp_path: Path
) -> None:
    results = []
    for frames in (16, 64):
        store = Store.open(str(tmp_path / f"store{frames}"))
        again = INTERPOLATE | {"name": "again"}
        plan = run(folder, store, INTERPOLATE, again, chunks={"frames": frames})
        stage = plan.by_name["again"]
        for chunk, planned in zip(stage.chunks, stage.chunk_bytes, strict=True):
            record = store.find(chunk.key)
            assert record is not None
            assert record.shape[0] == record.stop - record.start == 16 * chunk.num_frames
            assert store.read(chunk.key).nbytes < planned
        results.append(read(store, plan, "again"))
        assert np.array_equal(results[-1][::4], read(store, plan, "interpolate"))
    assert len(results[0]) == 16 * NUM_FRAMES
    assert np.array_equal(results[0], results[1])


def test_no_frame_is_made_of_two_scenes(folder: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = run(folder, store, INTERPOLATE, windows={"scenes": [0.375]})
    keys, made = read(store, plan, "encode"), read(store, plan, "interpolate")
    assert np.array_equal(made[8:12], keys[[2, 2, 2, 2]])
    assert np.array_equal(made[12], keys[3])


def test_video_has_four_times_the_frames_in_the_same_time(folder: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    output = tmp_path / "out.mp4"
    run(
        folder,
        store,
        INTERPOLATE,
        {"op": "decode"},
        output=output,
        source={"uri": str(folder / "clip.mp4"), "start": 0.25},
    )
    with av.open(output) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == 20
    assert [Fraction(at or 0).limit_denominator(1000) for at in times] == [
        Fraction(k, 32) for k in range(20)
    ]


def test_temporal_upsampler_denoises_windows_and_blends_them(folder: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    rule = {"size": 4, "overlap": 2}
    plan = run(folder, store, UPSAMPLE | {"windows": rule}, {"op": "decode", "keep": True})
    chunks = plan.by_name["upsample"].chunks
    assert [(chunk.start, chunk.stop) for chunk in chunks] == [(0, 4), (2, 6), (3, 7)]
    windows = [store.read(chunk.key) for chunk in chunks]
    assert windows[0].shape == (4, 4, 16, 16)
    assert not np.allclose(windows[0][2:], windows[1][:2], atol=1e-4)
    assert read(store, plan, "decode").shape == (7, 32, 32, 3)
    # Each frame alone would be the same in every window that holds it.
    parts = [(chunk.start, window) for chunk, window in zip(chunks, windows, strict=True)]
    joined = blend(parts, 0, 7, overlap=2)
    assert np.array_equal(joined[:2], windows[0][:2])


def test_interpolated_latents_are_upsampled_in_windows(folder: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = run(folder, store, INTERPOLATE, UPSAMPLE, {"op": "decode", "keep": True})
    upsampled = plan.by_name["upsample"].chunks
    assert [(chunk.start, chunk.stop) for chunk in upsampled][:2] == [(0, 2), (1, 3)]
    assert store.read(upsampled[0].key).shape == (8, 4, 16, 16)
    assert read(store, plan, "decode").shape == (28, 32, 32, 3)


@pytest.mark.parametrize(("cuts", "mode"), [((), "independent"), ((1, 2), "handoff")])
def test_one_frame_is_held_and_enlarged_whether_alone_or_between_cuts(
    folder: Path, tmp_path: Path, cuts: tuple[int, ...], mode: str
) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = run(
        folder,
        store,
        INTERPOLATE,
        UPSAMPLE | {"windows": {"mode": mode}},
        {"op": "decode"},
        source={"uri": str(folder / "clip.mp4"), "end": (len(cuts) + 1) / 8},
        windows={"scenes": [frame / 8 for frame in cuts]},
        output=tmp_path / "out.mp4",
    )
    keys, between = read(store, plan, "encode"), read(store, plan, "interpolate")
    assert np.array_equal(between, keys.repeat(4, axis=0))
    upsampled = [store.read(chunk.key) for chunk in plan.by_name["upsample"].chunks]
    assert [window.shape for window in upsampled] == [(4, 4, 16, 16)] * (len(cuts) + 1)
    with av.open(tmp_path / "out.mp4") as container:
        assert len(list(container.decode(video=0))) == 4 * (len(cuts) + 1)


def test_temporal_upsampler_hands_its_last_frames_over(folder: Path, tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    apart = {}
    for mode in ("independent", "handoff"):
        rule = {"size": 4, "overlap": 2, "mode": mode}
        plan = run(folder, store, UPSAMPLE | {"windows": rule})
        windows = [store.read(chunk.key) for chunk in plan.by_name["upsample"].chunks]
        apart[mode] = [
            float(np.abs(windows[0][2:] - windows[1][:2]).mean()),
            float(np.abs(windows[1][1:] - windows[2][:3]).mean()),
        ]
    # The schedule ends where a trace of noise is left.
    assert max(apart["handoff"]) < 0.03
    assert min(apart["independent"]) > 0.05
