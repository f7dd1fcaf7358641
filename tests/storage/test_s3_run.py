"""A whole run on S3, over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentloom.media.probe import probe
from latentloom.storage.maintenance import verify
from latentloom.storage.store import Store
from tests.runs import compile_small, computed, make_clip, run_here


@pytest.mark.slow
def test_run_on_s3_is_resumed_from_s3(s3_uri: str, tmp_path: Path) -> None:
    clip, output = make_clip(tmp_path / "clip.mp4"), tmp_path / "edited.mp4"
    store = Store.open(s3_uri)
    plan = compile_small(store, clip, output)
    run_here(store, plan)
    expected = output.read_bytes()
    assert probe(output).num_frames == 24
    for segment in plan.by_name["encode_video"].chunks:
        store.delete(segment.key)
    output.unlink()
    again = computed(run_here(Store.open(s3_uri), plan))
    assert again["fuse"] == 0
    assert again["encode_video"] == len(plan.by_name["encode_video"].chunks)
    assert output.read_bytes() == expected
    assert verify(store).damages == []
