"""Every stage that denoises, stopped on its way and gone on with: same bytes, no step twice, a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.flows.execute import execute
from latentloom.flows.runs import register
from latentloom.flows.until import find_stop
from latentloom.models.schedulers import Sampler, Schedule
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import clean_estimate
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.preview import Sample, sample_estimates
from tests.editing import STEPS, compile_edit, write_map, write_mask
from tests.models import tiny
from tests.runs import make_clip

NUM_FRAMES = 3
PROMPTS = {"source": "a dog", "target": "a big cat", "instruction": "make it blue"}
EDITS: dict[str, dict[str, Any]] = {
    "img2img": {"strength": 0.75},
    "controlnet": {"controlnet": {"model": "control"}},
    "t2i_adapter": {"t2i_adapter": {"model": "t2i_adapter", "kind": "depth", "map": "depth"}},
    "inpaint": {"mask": "mask", "strength": 0.75},
    "outpaint": {"model": "inpaint", "left": 8},
    "instruct_pix2pix": {"image_guidance_scale": 1.8},
    "prompt2prompt": {
        "mode": "refine",
        "cross_replace_steps": 0.75,
        "local_blend": {"words": ["dog", "cat"], "start": 0.25},
    },
    "upscale": {"op": "upscale", "kind": None},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny.save_image_pipeline(root / "image")
    tiny.save_controlnet(root / "control")
    tiny.save_t2i_adapter(root / "t2i_adapter")
    tiny.save_inpaint_unet(root / "inpaint")
    tiny.save_instruct_pipeline(root / "instruct")
    tiny.save_upscaler(root / "upscale")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", NUM_FRAMES, size=16)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the steps that any sampler takes."""
    found, step = list[int](), Sampler.step

    def noted(self: Sampler, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        found.append(i)
        return step(self, eps, i, z)

    monkeypatch.setattr(Sampler, "step", noted)
    return found


def compiled(folder: Path, models: Path, clip: Path, kind: str) -> Plan:
    maps = {
        "depth": {"uri": str(write_map(folder / "depth.mkv", NUM_FRAMES))},
        "mask": {"uri": str(write_mask(folder / "mask.mkv"))},
    }
    stage = {"kind": kind} | EDITS[kind]
    return compile_edit(folder, models, clip, stage, prompts=PROMPTS, maps=maps)


def ended(folder: Path, plan: Plan, until: str | None = None) -> tuple[str, list[bytes]]:
    """Run a plan; return the state, and what its last stage has made."""
    store = Store.open(str(folder / "store"))
    stop = None if until is None else find_stop(plan, until)
    state = execute(store, plan, register(store, plan), until=stop)
    keys = [chunk.key for chunk in plan.stages[-1].chunks]
    return state.state, [store.read(key).tobytes() for key in keys if store.present([key])]


def samples(folder: Path, plan: Plan) -> Sequence[Sample]:
    store = Store.open(str(folder / "store"))
    return list(sample_estimates(store, plan, plan.stages[-1].name, range(NUM_FRAMES)))


@pytest.mark.parametrize("kind", EDITS)
def test_stage_that_is_stopped_and_gone_on_with_gives_the_same_bytes(
    models: Path, clip: Path, tmp_path: Path, taken: list[int], kind: str
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    _, expected = ended(tmp_path / "whole", compiled(tmp_path / "whole", models, clip, kind))
    in_all = sorted(taken)
    taken.clear()
    plan = compiled(tmp_path / "stopped", models, clip, kind)
    assert ended(tmp_path / "stopped", plan, "2") == ("stopped", [])
    assert max(taken) == 1
    pictures = samples(tmp_path / "stopped", plan)
    assert [sample.step for sample in pictures] == [2] * NUM_FRAMES
    assert {p.picture.shape for p in pictures if p.picture is not None} == {
        plan.stages[-1].frame_shape
    }
    assert ended(tmp_path / "stopped", plan) == ("finished", expected)
    assert sorted(taken) == in_all


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, STEPS, 50])
def test_estimate_from_both_ends_of_a_step_is_what_it_was_made_from(
    spacing: str, steps: int
) -> None:
    sampler = Schedule({"timestep_spacing": spacing}).sampler(steps)
    clean, eps = (frame_noise(7, name, [0, 1], (4, 2, 2)) for name in ("clean", "eps"))
    for i in range(steps):
        signal = sampler.alpha_bar(i)
        z = signal**0.5 * clean + (1 - signal) ** 0.5 * eps
        found = clean_estimate(z, sampler.step(eps, i, z), signal, sampler.alpha_bar_after(i))
        assert torch.allclose(found, clean, atol=1e-3)


def test_stop_costs_no_call_of_the_model(
    models: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()
    from latentloom.models.image import ImageDenoiser

    predict: Callable[..., torch.Tensor] = ImageDenoiser.predict

    def counted(self: ImageDenoiser, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        return predict(self, *arguments)

    monkeypatch.setattr(ImageDenoiser, "predict", counted)
    plan = compiled(tmp_path, models, clip, "img2img")
    ended(tmp_path, plan, "3")
    samples(tmp_path, plan)
    # Steps 1 and 2, with and without the prompt.
    assert len(calls) == 4
    ended(tmp_path, plan)
    assert len(calls) == 6
