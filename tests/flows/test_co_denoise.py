"""Windows that meet at every step: what a plan foretells, what a run does, what it leaves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentloom.errors import RecipeError, ResourceError
from latentloom.flows.compile import compile_plan
from latentloom.flows.execute import execute
from latentloom.flows.inspect import describe_run, kept_keys
from latentloom.flows.need import Need, find_need
from latentloom.flows.runs import register
from latentloom.flows.steps import plan_steps
from latentloom.models.schedulers import Sampler
from latentloom.ops.blend import blend
from latentloom.ops.fuse import fuse
from latentloom.ops.sampling import Predict
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.schemas.run import RunState
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import prune, verify
from latentloom.storage.store import Store
from latentloom.tasks import group
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.loading import PlanModels
from tests.facts import make_facts, make_recipe
from tests.runs import STAGES, compile_small, computed, make_clip, run_here
from tests.storage.faults import FailFrom

STEPS = 4
WINDOWS = {"size": 8, "overlap": 3, "mode": "co_denoise"}
SMOOTH: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "num_inference_steps": STEPS},
    {"op": "smooth", "guidance_scale": 2.0},
]
FUSE = [SMOOTH[0], SMOOTH[1], STAGES[2] | {"tau": 2, "schedule": "constant"}]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 29)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def make_plan(store: Store, clip: Path, stages: list[dict[str, Any]], **changes: Any) -> Plan:
    return compile_small(store, clip, None, **({"stages": stages, "windows": WINDOWS} | changes))


def read_all(store: Store, plan: Plan, name: str) -> bytes:
    return b"".join(store.read(chunk.key).tobytes() for chunk in plan.by_name[name].chunks)


def foretold(store: Store, plan: Plan) -> Need:
    present = store.present(list(plan.keys()))
    return find_need(plan, present, published=False, look=store.present)


def done(store: Store, state: RunState) -> dict[str, list[tuple[int, int]]]:
    """Return step and index of every window that a run took to a step, by stage."""
    found: dict[str, list[tuple[int, int]]] = {}
    for event in store.events(state.run):
        if event.kind == "chunk_computed" and "step" in event.detail:
            step, index = event.detail["step"], event.index
            assert isinstance(step, int)
            assert index is not None
            found.setdefault(event.stage or "", []).append((step, index))
    return {name: sorted(pairs) for name, pairs in found.items()}


def as_pairs(need: Need, name: str) -> list[tuple[int, int]]:
    return sorted((step.step, index) for step in need.steps[name] for index in step.windows)


# plans


def plan_of(num_frames: int = 100, **changes: Any) -> Plan:
    windows = {"mode": "co_denoise"}
    return compile_plan(make_recipe(**({"windows": windows} | changes)), make_facts(num_frames))


def after(stage: PlannedStage, step: int, windows: range | None = None) -> set[str]:
    chosen = range(len(stage.chunks)) if windows is None else windows
    return {stage.key_at(index, step) for index in chosen}


def needed(plan: Plan, present: set[str]) -> Need:
    return find_need(plan, present, published=False, look=lambda keys: present & set(keys))


def test_fresh_store_needs_every_window_at_every_step() -> None:
    plan = plan_of()
    need = needed(plan, set())
    for name in ("invert", "fuse"):
        count = len(plan.by_name[name].chunks)
        assert [(s.step, s.windows) for s in need.steps[name]] == [
            (step, list(range(count))) for step in (1, 2, 3, 4)
        ]
    assert need.num_computed("invert") == 4 * len(need["invert"])


def test_run_goes_on_at_the_newest_complete_step_without_what_is_upstream() -> None:
    plan = plan_of()
    fuse = plan.by_name["fuse"]
    count = len(fuse.chunks)
    need = needed(plan, after(fuse, 2) | after(fuse, 3, range(3)))
    assert [(s.step, s.windows) for s in need.steps["fuse"]] == [
        (3, list(range(3, count))),
        (4, list(range(count))),
    ]
    assert need["invert"] == need["encode"] == []


def test_window_lost_between_steps_is_made_again_from_the_step_before() -> None:
    plan = plan_of()
    fuse = plan.by_name["fuse"]
    present = after(fuse, 1) | after(fuse, 2) - after(fuse, 2, range(4, 5))
    first, *_ = needed(plan, present).steps["fuse"]
    assert (first.step, first.windows) == (2, [4])


def test_finished_windows_need_no_step() -> None:
    plan = plan_of()
    present = {chunk.key for chunk in plan.by_name["fuse"].chunks}
    need = needed(plan, present)
    assert need.steps == {"invert": [], "fuse": []}
    assert not need["invert"]


def test_lost_window_costs_a_cone_that_widens_toward_the_first_step() -> None:
    plan = plan_of(400)
    fuse = plan.by_name["fuse"]
    present = set(plan.keys()) - {fuse.chunks[15].key} - after(fuse, 4, range(15, 16))
    present -= {
        chunk.key for name in ("decode", "encode_video") for chunk in plan.by_name[name].chunks
    }
    need = needed(plan, present)
    assert [(s.step, s.windows) for s in need.steps["fuse"]] == [
        (1, list(range(12, 19))),
        (2, list(range(13, 18))),
        (3, list(range(14, 17))),
        (4, [15]),
    ]


def test_cone_stays_within_its_shot() -> None:
    prompts = [{"target": "a", "end": 12}, {"target": "b", "start": 12}]
    plan = plan_of(400, prompts=prompts)
    fuse = plan.by_name["fuse"]
    lost = next(i for i, chunk in enumerate(fuse.chunks) if chunk.start == 120)
    present = set(plan.keys()) - after(fuse, 4, range(lost, lost + 1))
    present -= {
        chunk.key for name in ("decode", "encode_video") for chunk in plan.by_name[name].chunks
    }
    for step in needed(plan, present).steps["fuse"]:
        assert step.windows == list(range(lost, lost + 1 + 4 - step.step))


def test_each_step_is_a_barrier_with_a_group_for_every_worker() -> None:
    plan = plan_of(400)
    steps = [s for s in plan_steps(plan, needed(plan, set()), workers=2) if s.stage == "fuse"]
    assert [step.denoising_step for step in steps] == [1, 2, 3, 4]
    assert {len(step.groups) for step in steps} == {2}


def test_plan_does_not_list_steps() -> None:
    sizes = [
        len(plan_of(2000, windows={"mode": mode}).model_dump_json())
        for mode in ("independent", "co_denoise")
    ]
    assert sizes[1] < 1.5 * sizes[0]
    long = plan_of(
        2000, stages=[{"op": "encode"}, {"op": "invert", "num_inference_steps": 400}], output=None
    )
    short = plan_of(
        2000, stages=[{"op": "encode"}, {"op": "invert", "num_inference_steps": 4}], output=None
    )
    assert len(long.model_dump_json()) - len(short.model_dump_json()) < 20 * 400


def test_steps_follow_noise_start_and_strength() -> None:
    stages = [
        {"op": "encode"},
        {"op": "invert", "num_inference_steps": 10, "noise_start": 2, "strength": 0.6},
        {"op": "smooth"},
    ]
    plan = plan_of(stages=stages, output=None)
    assert plan.by_name["invert"].steps == (3, 4, 5, 6)
    assert plan.by_name["smooth"].steps == (5, 6, 7, 8, 9, 10)


def test_image_inversion_and_mix_take_no_steps_together() -> None:
    stages = [
        {"op": "encode"},
        {"op": "invert", "name": "by_image", "model": "image", "num_inference_steps": 4},
        {"op": "invert", "name": "by_video", "inputs": ["encode"], "num_inference_steps": 4},
        {"op": "mix", "inputs": ["by_image", "by_video"]},
        {"op": "smooth"},
    ]
    plan = plan_of(stages=stages, output=None)
    with_steps = [stage.name for stage in plan.stages if stage.steps]
    assert with_steps == ["by_video", "smooth"]
    mix = plan.by_name["mix"]
    assert mix.chunks[2].reads[1] == tuple(plan.by_name["by_video"].neighbours(2))


@pytest.mark.parametrize(
    ("windows", "stages", "says"),
    [
        (
            {"mode": "handoff"},
            SMOOTH,
            "stage 'invert': windows.mode handoff is for smooth, upsample",
        ),
        ({"mode": "co_denoise", "overlap": 0}, SMOOTH, "needs windows that overlap"),
        (
            {},
            [*SMOOTH[:2], SMOOTH[2] | {"windows": {"mode": "co_denoise"}}],
            "'invert' inverts every window alone",
        ),
        (
            {},
            [*SMOOTH[:2], SMOOTH[2] | {"windows": {"mode": "handoff"}}],
            "'invert' inverts every window alone",
        ),
        (
            {"mode": "co_denoise"},
            [*SMOOTH[:2], FUSE[2] | {"windows": {"mode": "handoff"}}],
            "stage 'fuse': windows.mode handoff is for smooth, upsample",
        ),
    ],
)
def test_mode_that_does_not_fit_is_one_clear_error(
    windows: dict[str, Any], stages: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        plan_of(windows=windows, stages=stages, output=None)


def test_redo_range_cannot_change_the_steps_that_windows_take_together() -> None:
    redo = [{"frames": [10, 20], "overrides": ["stages.invert.noise_start=1"]}]
    with pytest.raises(RecipeError, match="noise_start cannot differ within a video"):
        plan_of(redo=redo)


# runs


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


def test_fuse_averages_the_latents_of_every_source(store: Store, clip: Path) -> None:
    plan = make_plan(store, clip, FUSE)
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
    smooth = plan.by_name["smooth"]
    stage, seen = group.STAGES["smooth"], Counter[int]()

    def watch(chunk: OpenChunk) -> Any:
        for step in smooth.steps:
            if store.present(smooth.keys_at(step)):
                seen[chunk.step or 0] = max(seen[chunk.step or 0], chunk.step or 0 - step)
                assert (chunk.step or 0) - 2 <= step <= (chunk.step or 0)
        return stage(chunk)

    monkeypatch.setitem(group.STAGES, "smooth", watch)
    run_here(store, plan)
    assert len(seen) == STEPS


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


def stop_in(monkeypatch: pytest.MonkeyPatch, step: int, index: int) -> None:
    stage = group.STAGES["smooth"]

    def die(chunk: OpenChunk) -> Any:
        if chunk.step == step and chunk.chunk == chunk.stage.chunk_at(index, step):
            raise ResourceError("as if the machine were full")
        return stage(chunk)

    monkeypatch.setitem(group.STAGES, "smooth", die)


def test_stopped_run_goes_on_within_its_step(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    count = len(plan.by_name["smooth"].chunks)
    other = Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    with monkeypatch.context() as patch:
        stop_in(patch, step=3, index=2)
        with pytest.raises(ResourceError):
            run_here(store, plan)
    kept = kept_keys(store)
    taken = prune(store, keep=kept, min_age_seconds=0, orphan_age_seconds=0)
    assert "chunk" not in {removed.kind for removed in taken.removed}
    before = done(store, run_state(store))["smooth"]
    state = run_here(store, plan)
    assert done(store, state)["smooth"] == sorted(
        {(s, i) for s in (1, 2, 3, 4) for i in range(count)}
    )
    assert len(before) == 2 * count + 2
    assert read_all(store, plan, "smooth") == read_all(other, plan, "smooth")
    assert store.present(list(plan.keys())) == set(plan.keys())
    assert not store.present([k for s in (1, 2, 3) for k in plan.by_name["smooth"].keys_at(s)])


def run_state(store: Store) -> RunState:
    return RunState.model_validate({"run": store.runs()[-1], "name": "", "plan": "", "source": ""})


def test_damaged_window_between_steps_is_made_again(
    store: Store, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(store, clip, SMOOTH)
    smooth = plan.by_name["smooth"]
    other = Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    with monkeypatch.context() as patch:
        stop_in(patch, step=4, index=0)
        with pytest.raises(ResourceError):
            run_here(store, plan)
    record = store.find(smooth.key_at(1, 3))
    assert record is not None
    (path,) = Path(store.uri, record.object).glob("c.*")
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(bytes(data))
    run_here(store, plan)
    assert read_all(store, plan, "smooth") == read_all(other, plan, "smooth")
    assert verify(store).damages == []


def test_store_that_fills_up_between_steps_is_resumable(clip: Path, tmp_path: Path) -> None:
    prepared = Store.open(str(tmp_path / "store"))
    plan = make_plan(prepared, clip, SMOOTH)
    state = register(prepared, plan)
    full = Store(FailFrom(LocalBackend(tmp_path / "store"), 60))
    with pytest.raises(ResourceError) as caught:
        execute(full, plan, state)
    assert caught.value.exit_code == 7
    stages = {s["name"]: s["done"] for s in describe_run(prepared, state.run)["stages"]}
    assert stages["smooth"] == 0
    assert run_here(prepared, plan).state == "finished"
    other = Store.open(str(tmp_path / "other"))
    run_here(other, plan)
    assert read_all(prepared, plan, "smooth") == read_all(other, plan, "smooth")
