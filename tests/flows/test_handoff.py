"""Windows that go on from the one before them: order, keys and what a run does again."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.flows.compile import compile_plan
from latentloom.flows.need import find_need
from latentloom.flows.steps import plan_steps
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.facts import make_facts, make_recipe
from tests.runs import compile_small, computed, make_clip, run_here

SMALL = {"size": 8, "overlap": 3}
STAGES: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "num_inference_steps": 4, "windows": SMALL | {"mode": "co_denoise"}},
    {"op": "smooth", "guidance_scale": 2.0, "windows": SMALL | {"mode": "handoff"}},
]


def plan_of(num_frames: int = 60, *, image: bool = False, **changes: Any) -> Plan:
    """Compile the stages, inverted by the image model if asked to: frame by frame, without a cone."""
    invert = STAGES[1] | ({"model": "image", "windows": None} if image else {})
    recipe = make_recipe(stages=[STAGES[0], invert, STAGES[2]], output=None, **changes)
    return compile_plan(recipe, make_facts(num_frames))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 29)


def test_key_of_a_window_covers_the_one_before_it_in_its_shot() -> None:
    prompts = [{"target": "a", "end": 2}, {"target": "b", "start": 2}]
    changed = [{"target": "c", "end": 2}, {"target": "b", "start": 2}]
    before, after = (plan_of(prompts=p).by_name["smooth"] for p in (prompts, changed))
    differs = [a.key != b.key for a, b in zip(before.chunks, after.chunks, strict=True)]
    assert differs == [chunk.start < 20 for chunk in before.chunks]


def test_longer_cut_shares_all_windows_but_the_one_that_slid() -> None:
    short, longer = (
        [chunk.key for chunk in plan_of(length, image=True).by_name["smooth"].chunks]
        for length in (64, 96)
    )
    assert len(set(short) & set(longer)) == len(short) - 1


def test_windows_of_a_shot_are_one_group_and_shots_are_shared_out() -> None:
    prompts = [{"target": "a", "end": 2}, {"target": "b", "start": 2}]
    plan = plan_of(prompts=prompts)
    need = find_need(plan, set(), published=False)
    (step,) = [s for s in plan_steps(plan, need, workers=4) if s.stage == "smooth"]
    starts = [[plan.by_name["smooth"].chunks[i].start for i in group] for group in step.groups]
    assert [max(group) < 20 for group in starts] == [True, False]
    assert all(group == sorted(group) for group in starts)


def test_missing_window_demands_those_before_it_back_to_one_that_is_there() -> None:
    plan = plan_of()
    keys = [chunk.key for chunk in plan.by_name["smooth"].chunks]
    present = set(plan.keys()) - set(keys[3:6])
    assert find_need(plan, present, published=False)["smooth"] == [3, 4, 5]


def test_shared_frames_are_what_the_window_before_made_of_them(store: Store, clip: Path) -> None:
    plan = compile_small(store, clip, None, stages=STAGES)
    run_here(store, plan)
    chunks = plan.by_name["smooth"].chunks
    for before, chunk in pairwise(chunks):
        shared = before.stop - chunk.start
        assert shared >= 3
        np.testing.assert_allclose(
            store.read(chunk.key)[:shared], store.read(before.key)[-shared:], atol=0.1
        )


def test_lost_window_is_made_again_to_the_same_bytes(store: Store, clip: Path) -> None:
    plan = compile_small(store, clip, None, stages=STAGES)
    run_here(store, plan)
    lost = plan.by_name["smooth"].chunks[2]
    expected = store.read(lost.key).tobytes()
    store.delete(lost.key)
    assert computed(run_here(store, plan)) == {
        "decode_video": 0,
        "encode": 0,
        "invert": 0,
        "smooth": 1,
    }
    assert store.read(lost.key).tobytes() == expected


@pytest.mark.parametrize(("num_frames", "scenes"), [(1, "none"), (5, "none"), (4, (1, 2, 3))])
def test_window_with_none_before_it_is_as_if_it_stood_alone(
    store: Store, tmp_path: Path, num_frames: int, scenes: Any
) -> None:
    """One frame, a video shorter than a window, and a cut in every frame."""
    clip = make_clip(tmp_path / "short.mp4", num_frames)
    cuts = scenes if scenes == "none" else [frame / 8 for frame in scenes]
    made = []
    for mode in ("handoff", "independent"):
        stages = [*STAGES[:2], STAGES[2] | {"windows": SMALL | {"mode": mode}}]
        plan = compile_small(store, clip, None, stages=stages, windows={"scenes": cuts})
        assert run_here(store, plan).state == "finished"
        chunks = plan.by_name["smooth"].chunks
        assert len(chunks) == (1 if scenes == "none" else num_frames)
        made.append([store.read(chunk.key).tobytes() for chunk in chunks])
    assert made[0] == made[1]
