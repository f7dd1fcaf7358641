"""Models that are loaded before the first chunk."""

from __future__ import annotations

from pathlib import Path

from latentloom.models.load import load_image_model, load_video_model
from latentloom.storage.store import Store
from latentloom.tasks.loading import PlanModels, forget_models
from latentloom.tasks.preload import preload
from tests.runs import compile_small, make_clip


def test_what_stages_ask_for_is_loaded_once(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 8)
    plan = compile_small(Store.open(str(tmp_path / "store")), clip, tmp_path / "out.mp4")
    forget_models()
    preload(plan, ["encode"])
    assert (load_image_model.cache_info().currsize, load_video_model.cache_info().currsize) == (
        1,
        0,
    )
    preload(plan, ["encode", "fuse"])
    loads = load_image_model.cache_info().misses, load_video_model.cache_info().misses
    assert loads == (1, 1)
    models = PlanModels(plan)
    models.image("image")
    models.video("video")
    assert loads == (load_image_model.cache_info().misses, load_video_model.cache_info().misses)

    forget_models()
    assert load_image_model.cache_info().currsize == 0
