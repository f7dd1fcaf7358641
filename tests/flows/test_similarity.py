"""How alike the sources' latents were: what a run notes of it, and what ``status`` makes of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentloom.flows.inspect import describe_run
from latentloom.flows.similarity import similarity_by_stage, similarity_line
from latentloom.schemas.event import Event
from latentloom.storage.store import Store
from tests.runs import STAGES, compile_small, make_clip, run_here


def noted(key: str, cosines: list[list[list[float]]], time: float = 0.0) -> Event:
    similarity = {"to": "video", "sources": ["image"], "first_step": 2, "cosines": cosines}
    return Event(
        time=time,
        kind="chunk_computed",
        run="r",
        stage="fuse",
        key=key,
        detail={"similarity": similarity},
    )


def test_steps_are_means_over_all_frames_and_a_window_counts_once() -> None:
    events = [
        noted("aa", [[[0.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]]),
        noted("aa", [[[1.0, 0.8]], [[0.6, 0.4]], [[0.7, 0.9]]], time=1.0),
        noted("bb", [[[0.6]], [[0.2]], [[0.8]]], time=2.0),
        Event(time=3.0, kind="chunk_computed", run="r", stage="decode", key="cc"),
    ]
    (summary,) = similarity_by_stage(events)["fuse"]
    assert summary["steps"] == pytest.approx([0.8, 0.4, 0.8])
    assert similarity_line("fuse", summary) == (
        "fuse: cosine of image and video 0.800 at step 2, 0.800 at step 4, lowest 0.400 at step 3"
    )


def test_run_notes_every_step_of_every_pair(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    sources = [
        {"model": "image", "weight": 0.4},
        {"model": "video", "weight": 0.4},
        {"model": "image", "name": "free", "start": "noise", "weight": 0.2},
    ]
    stages = [
        STAGES[0],
        STAGES[1] | {"num_inference_steps": 3},
        STAGES[2] | {"sources": sources, "tau": 1},
    ]
    clip = make_clip(tmp_path / "clip.mp4", 14)
    state = run_here(store, compile_small(store, clip, None, stages=stages))
    fuse = describe_run(store, state.run)["stages"][-1]
    image, free = fuse["similarity"]
    assert [(s["source"], s["to"], s["first_step"]) for s in (image, free)] == [
        ("image", "video", 0),
        ("free", "video", 0),
    ]
    assert all(len(summary["steps"]) == 3 for summary in (image, free))
    # From fresh noise the latents begin far from the inverted ones.
    assert image["steps"][0] > 0.99
    assert abs(free["steps"][0]) < 0.9
    assert image["steps"][image["lowest"]] == min(image["steps"])
