"""Windows that meet at every step: what a plan foretells, what a run does, what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentloom.flows import execute as execution
from latentloom.flows import sweep
from latentloom.flows.execute import execute
from latentloom.flows.progress import Progress, StageProgress
from latentloom.flows.runs import register
from latentloom.models.schedulers import Sampler
from latentloom.ops.blend import blend
from latentloom.ops.fuse import fuse
from latentloom.ops.sampling import Predict
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks import group
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.loading import PlanModels
from tests.meeting import (
    FUSE,
    SMOOTH,
    STEPS,
    WINDOWS,
    as_pairs,
    done,
    foretold,
    make_plan,
    read_all,
)
from tests.runs import computed, make_clip, run_here

WEIGHTS = ["pyramid", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flat", "linear"))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 29)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


class Oracle:
    """The whole video's states in memory, stepped window by window and averaged by the rule."""

    def __init__(self, store: Store, plan: Plan, name: str) -> None:
        self.store, self.plan, self.stage = store, plan, plan.by_name[name]
        self.models = PlanModels(plan)

    def opened(self, index: int) -> OpenChunk:
        chunk = self.stage.chunks[index]
        return OpenChunk(self.store, self.plan, self.stage, chunk, self.models)

    def averaged(self, windows: list[torch.Tensor]) -> torch.Tensor:
        parts = [
            (chunk.start, window.numpy())
            for chunk, window in zip(self.stage.chunks, windows, strict=True)
        ]
        rule = self.stage.variants[0].fields["windows"]
        shape, overlap = rule["weights"], rule["overlap"]
        blended = blend(parts, self.plan.start, self.plan.stop, overlap=overlap, shape=shape)
        return torch.from_numpy(blended)

    def cut(self, whole: torch.Tensor) -> list[torch.Tensor]:
        start = self.plan.start
        return [whole[chunk.start - start : chunk.stop - start] for chunk in self.stage.chunks]


def predictions(chunk: OpenChunk, texts: dict[str, str], scale: float, name: str) -> Predict:
    model = chunk.models.denoising(name)
    return predict_with(chunk, model, texts, guidance_scale=scale)


def sampler_of(plan: Plan) -> Sampler:
    return PlanModels(plan).video("video").sampler(STEPS)


@pytest.mark.parametrize("weights", ["flat", "pyramid", "linear"])
def test_smooth_is_the_average_of_windows_after_every_step(
    store: Store, clip: Path, weights: str
) -> None:
    plan = make_plan(store, clip, SMOOTH, windows=WINDOWS | {"weights": weights})
    run_here(store, plan)
    oracle, sampler = Oracle(store, plan, "smooth"), sampler_of(plan)
    windows = [oracle.opened(i).input_latents() for i in range(len(oracle.stage.chunks))]
    for step in range(STEPS):
        for index, z in enumerate(windows):
            chunk = oracle.opened(index)
            eps = predictions(chunk, chunk.timed, 2.0, "video")(z, sampler.timesteps[step])
            windows[index] = sampler.step(eps, step, z)
        if step < STEPS - 1:
            windows = oracle.cut(oracle.averaged(windows))
    found = [store.read(chunk.key) for chunk in oracle.stage.chunks]
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, windows, strict=True))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_inversion_is_the_average_of_windows_after_every_step(
    store: Store, clip: Path, weights: str
) -> None:
    plan = make_plan(store, clip, SMOOTH[:2], windows=WINDOWS | {"weights": weights})
    run_here(store, plan)
    oracle, sampler = Oracle(store, plan, "invert"), sampler_of(plan)
    windows = [oracle.opened(i).input_latents() for i in range(len(oracle.stage.chunks))]
    for step in range(STEPS):
        for index, z in enumerate(windows):
            chunk = oracle.opened(index)
            timestep = sampler.timesteps[STEPS - 1 - step]
            eps = predictions(chunk, chunk.timed, 1.0, "video")(z, timestep)
            windows[index] = sampler.inverse_step(eps, step, z)
        if step < STEPS - 1:
            windows = oracle.cut(oracle.averaged(windows))
    found = [store.read(chunk.key) for chunk in oracle.stage.chunks]
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(found, windows, strict=True))


@pytest.mark.parametrize("weights", WEIGHTS)
def test_fuse_averages_the_latents_of_every_source(store: Store, clip: Path, weights: str) -> None:
    plan = make_plan(store, clip, FUSE, windows=WINDOWS | {"weights": weights})
    run_here(store, plan)
    oracle, sampler = Oracle(store, plan, "fuse"), sampler_of(plan)
    inverted = [oracle.opened(i).input_latents() for i in range(len(oracle.stage.chunks))]
    states = {name: list(inverted) for name in ("image", "video")}
    for step in range(STEPS):
        for index in range(len(inverted)):
            chunk = oracle.opened(index)
            for at, name in enumerate(states):
                z = states[name][index]
                predict = predictions(chunk, chunk.timed[f"sources.{at}"], 2.0, name)
                states[name][index] = sampler.step(predict(z, sampler.timesteps[step]), step, z)
            if step >= 2:
                mixed = fuse([states["image"][index], states["video"][index]], [0.3, 0.7])
                states = {name: [*s[:index], mixed, *s[index + 1 :]] for name, s in states.items()}
        if step < STEPS - 1:
            states = {name: oracle.cut(oracle.averaged(s)) for name, s in states.items()}
    found = [store.read(chunk.key) for chunk in oracle.stage.chunks]
    for ours, theirs in zip(found, states["video"], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_run_does_what_its_plan_foretold_and_leaves_only_the_last_step(
    store: Store, clip: Path
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    need, state = foretold(store, plan), run_here(store, plan)
    assert done(store, state) == {name: as_pairs(need, name) for name in ("invert", "smooth")}
    assert computed(state)["smooth"] == len(plan.by_name["smooth"].chunks)
    assert store.present(list(plan.keys())) == set(plan.keys())
    records = list(Path(store.uri, "records").glob("*/*.json"))
    assert len(records) == len(set(plan.keys()))
    assert not any(foretold(store, plan).values())
    assert done(store, run_here(store, plan)) == {}


def test_at_most_three_steps_lie_in_the_store(
    store: Store, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    smooth, stage = plan.by_name["smooth"], group.STAGES["smooth"]
    seen: dict[int, set[int]] = {}

    def watch(chunk: OpenChunk) -> Any:
        assert chunk.step is not None
        there = {step for step in smooth.steps if store.present(smooth.keys_at(step))}
        seen.setdefault(chunk.step, set()).update(there)
        return stage(chunk)

    monkeypatch.setitem(group.STAGES, "smooth", watch)
    run_here(store, plan)
    assert seen == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {2, 3, 4}}


def test_changed_moment_of_a_mix_costs_the_cone_that_plan_foretold(
    store: Store, clip: Path
) -> None:
    def stages(last: float) -> list[dict[str, Any]]:
        moments = [(0, 0.5), (2.9, 0.5), (3.2, last)]
        return [
            SMOOTH[0],
            SMOOTH[1] | {"name": "by_image", "model": "image"},
            SMOOTH[1] | {"name": "by_video", "inputs": ["encode"]},
            {
                "op": "mix",
                "inputs": ["by_image", "by_video"],
                "ratio": [{"time": time, "ratio": ratio} for time, ratio in moments],
            },
            SMOOTH[2] | {"windows": WINDOWS | {"size": 4, "overlap": 1}},
        ]

    small = WINDOWS | {"size": 4, "overlap": 1}
    run_here(store, make_plan(store, clip, stages(0.5), windows=small))
    changed = make_plan(store, clip, stages(0.9), windows=small)
    need = foretold(store, changed)
    total = STEPS * len(changed.by_name["smooth"].chunks)
    assert 0 < need.num_computed("smooth") < total
    state = run_here(store, changed)
    assert done(store, state) == {"smooth": as_pairs(need, "smooth")}


def test_changed_prompt_recomputes_its_shot_alone(store: Store, clip: Path) -> None:
    def prompts(last: str) -> list[dict[str, Any]]:
        return [
            {"source": "a", "target": "b", "end": 2},
            {"source": "a", "target": last, "start": 2},
        ]

    run_here(store, make_plan(store, clip, SMOOTH, prompts=prompts("c")))
    plan = make_plan(store, clip, SMOOTH, prompts=prompts("d"))
    need, state = foretold(store, plan), run_here(store, plan)
    assert done(store, state) == {"smooth": as_pairs(need, "smooth")}
    smooth = plan.by_name["smooth"]
    second = [index for index, chunk in enumerate(smooth.chunks) if chunk.start >= 16]
    assert as_pairs(need, "smooth") == [(step, i) for step in smooth.steps for i in second]


@pytest.mark.parametrize(
    ("num_frames", "scenes"), [(1, "none"), (5, "none"), (6, [k / 8 for k in range(1, 6)])]
)
def test_short_videos_and_a_cut_in_every_frame(
    store: Store, tmp_path: Path, num_frames: int, scenes: Any
) -> None:
    clip = make_clip(tmp_path / "short.mp4", num_frames)
    plan = make_plan(store, clip, SMOOTH, windows=WINDOWS | {"scenes": scenes})
    assert len(plan.by_name["smooth"].chunks) == (1 if scenes == "none" else num_frames)
    assert run_here(store, plan).state == "finished"
    alone = make_plan(
        store, clip, SMOOTH, windows=WINDOWS | {"mode": "independent", "scenes": scenes}
    )
    run_here(store, alone)
    assert read_all(store, plan, "smooth") == read_all(store, alone, "smooth")


def test_float16_stage_steps_in_float32(store: Store, clip: Path) -> None:
    profile = {"threads": 1, "device": "cpu", "dtype": "float16"}
    plan = make_plan(store, clip, SMOOTH, numerics=profile)
    run_here(store, plan)
    full = make_plan(store, clip, SMOOTH)
    run_here(store, full)
    chunk, other = (p.by_name["smooth"].chunks[1] for p in (plan, full))
    assert store.read(chunk.key).dtype == np.float16
    np.testing.assert_allclose(store.read(chunk.key), store.read(other.key), atol=0.05)


def test_plan_foretells_the_bytes_that_steps_take(
    store: Store, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [SMOOTH[0], SMOOTH[1], FUSE[2]]
    plan = make_plan(store, clip, stages)
    most, behind = 0, sweep.sweep_behind

    def measure(*arguments: Any) -> None:
        nonlocal most
        files = [p for name in ("data", "records") for p in Path(store.uri, name).rglob("*")]
        most = max(most, sum(path.stat().st_size for path in files if path.is_file()))
        behind(*arguments)

    monkeypatch.setattr(execution, "sweep_behind", measure)
    run_here(store, plan)
    assert 0.9 < most / plan.store_bytes <= 1


def test_progress_counts_windows_at_every_step(store: Store, clip: Path) -> None:
    plan = make_plan(store, clip, SMOOTH)
    need, shown = foretold(store, plan), dict[str, StageProgress]()
    state = register(store, plan)

    def show(stage: StageProgress, eta: float | None) -> None:
        shown[stage.name] = stage

    progress = Progress(store, plan, state.run, need, 1, show)
    execute(store, plan, state)
    progress.look()
    smooth = shown["smooth"]
    assert (smooth.done, smooth.total) == (smooth.total, STEPS * len(need["smooth"]))
    assert smooth.frames_left == 0
