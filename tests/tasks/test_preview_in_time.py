"""Stopping in a stage behind an interpolation, or in a temporal upsampler: what is shown, and going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentloom.flows.execute import execute
from latentloom.flows.runs import register
from latentloom.flows.until import find_stop
from latentloom.models.schedulers import Sampler
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.storage.store import Store
from latentloom.tasks.preview import sample_estimates
from tests.in_time import INTERPOLATE, UPSAMPLE, compile_in_time, save_models
from tests.runs import run_here

UNTIL = 1
FRAME_BY_FRAME = UPSAMPLE | {"model": "upsample"}
IN_WINDOWS = UPSAMPLE | {"windows": {"size": 8, "overlap": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("in_time"))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The denoising steps that were taken."""
    taken, step = list[int](), Sampler.step

    def noted(self: Sampler, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        taken.append(i)
        return step(self, eps, i, z)

    monkeypatch.setattr(Sampler, "step", noted)
    return taken


def stop(store: Store, plan: Plan) -> RunState:
    until = find_stop(plan, str(UNTIL))
    return execute(store, plan, register(store, plan), until=until, preview=True)


@pytest.mark.parametrize(
    "stages",
    [
        [IN_WINDOWS],
        [INTERPOLATE, FRAME_BY_FRAME],
        pytest.param([INTERPOLATE, IN_WINDOWS], marks=pytest.mark.slow),
    ],
)
def test_upsampling_stops_is_shown_and_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, steps: list[int], stages: list[dict[str, Any]]
) -> None:
    store, other = (Store.open(str(tmp_path / name)) for name in ("store", "other"))
    ways = [*stages, {"op": "decode"}]
    run_here(other, compile_in_time(other, folder, *ways, output=tmp_path / "whole.mp4"))
    in_all = len(steps)
    plan = compile_in_time(store, folder, *ways, output=tmp_path / "edited.mp4")
    assert stop(store, plan).state == "previewed"
    assert len(steps) == in_all + in_all // 2
    assert run_here(store, plan).state == "finished"
    assert len(steps) == 2 * in_all
    assert (tmp_path / "edited.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize("upsample", [FRAME_BY_FRAME, IN_WINDOWS])
def test_picture_behind_an_interpolation_is_of_the_source_frame_beside_it(
    folder: Path, tmp_path: Path, upsample: dict[str, Any]
) -> None:
    store = Store.open(str(tmp_path / "store"))
    plan = compile_in_time(store, folder, INTERPOLATE, upsample, {"op": "decode", "keep": True})
    run_here(store, plan)
    chunks = plan.by_name["decode"].chunks
    video = np.concatenate([store.read(chunk.key) for chunk in chunks]).astype(int)
    for sample in sample_estimates(store, plan, "upsample", range(plan.num_frames)):
        assert sample.picture is not None
        apart = [np.abs(frame - sample.picture).mean() for frame in video]
        assert min(range(len(apart)), key=apart.__getitem__) == 4 * sample.frame
