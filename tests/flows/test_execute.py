"""Runs on stand-in models, stages called directly: what is reused, what is repaired, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentloom.errors import (
    InterruptedRunError,
    MediaError,
    ResourceError,
    StageError,
    UsageError,
)
from latentloom.flows.runs import lease_name, read_state, register
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe
from latentloom.schemas.plan import Plan
from latentloom.storage.leases import lease
from latentloom.storage.maintenance import verify
from latentloom.storage.store import Store
from latentloom.tasks import group
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.published import read_sidecar
from tests.runs import STAGES, compile_small, computed, make_clip, run_here


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def test_run_publishes_every_frame_at_its_time(clip: Path, store: Store, tmp_path: Path) -> None:
    output = tmp_path / "out" / "edited.mp4"
    state = run_here(store, compile_small(store, clip, output))
    before, after = probe(clip), probe(output)
    assert state.state == "finished"
    assert [before.seconds(k) for k in range(24)] == [after.seconds(k) for k in range(24)]
    assert read_sidecar(str(output))["run"] == state.run
    assert all(stage.computed + stage.reused == stage.chunks for stage in state.stages)


def test_second_run_computes_nothing_and_writes_nothing(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "edited.mp4"
    plan = compile_small(store, clip, output)
    run_here(store, plan)
    stamp = output.stat().st_mtime_ns
    assert not any(computed(run_here(store, plan)).values())
    assert output.stat().st_mtime_ns == stamp


def test_frames_are_deleted_behind_their_reader_and_not_made_again(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "edited.mp4"
    plan = compile_small(store, clip, output)
    assert computed(run_here(store, plan))["decode"] == 3
    decode = plan.by_name["decode"]
    assert not store.present([chunk.key for chunk in decode.chunks])
    output.unlink()
    assert not any(computed(run_here(store, plan)).values())
    assert output.exists()


def test_kept_frames_stay(clip: Path, store: Store, tmp_path: Path) -> None:
    stages = [*STAGES[:3], {"op": "decode", "keep": True}]
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=stages)
    run_here(store, plan)
    keys = [chunk.key for chunk in plan.by_name["decode"].chunks]
    assert store.present(keys) == set(keys)


def test_other_alpha_computes_fuse_and_what_follows(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    run_here(store, compile_small(store, clip, tmp_path / "a.mp4"))
    stages = [*STAGES[:2], STAGES[2] | {"alpha": 0.2}, STAGES[3]]
    after = computed(run_here(store, compile_small(store, clip, tmp_path / "b.mp4", stages=stages)))
    assert after["encode"] == after["invert"] == 0
    assert after["fuse"] == 4
    assert (tmp_path / "a.mp4").read_bytes() != (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("frames", [1, 4, 7, 16])
def test_any_chunk_size_gives_the_same_frames(
    clip: Path, store: Store, tmp_path: Path, frames: int
) -> None:
    stages: list[dict[str, Any]] = [
        {"op": "encode"},
        {"op": "invert", "model": "image", "num_inference_steps": 2, "noise_start": 1},
    ]
    plan = compile_small(store, clip, None, stages=stages, chunks={"frames": frames})
    run_here(store, plan)
    found = _read_stage(store, plan, "invert")
    whole = compile_small(store, clip, None, stages=stages, chunks={"frames": 24})
    run_here(store, whole)
    assert found.tobytes() == _read_stage(store, whole, "invert").tobytes()


def test_flipped_bit_in_a_chunk_is_computed_again_not_passed_on(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "edited.mp4"
    plan = compile_small(store, clip, output)
    run_here(store, plan)
    expected = output.read_bytes()
    _damage(store, plan, "fuse", 1)
    for segment in plan.by_name["encode_video"].chunks:
        store.delete(segment.key)
    output.unlink()
    again = computed(run_here(store, plan))
    assert again["fuse"] == 1
    assert output.read_bytes() == expected
    assert verify(store).damages == []


def test_vanished_object_is_computed_again(clip: Path, store: Store, tmp_path: Path) -> None:
    output = tmp_path / "edited.mp4"
    plan = compile_small(store, clip, output)
    run_here(store, plan)
    expected = output.read_bytes()
    record = store.find(plan.by_name["encode_video"].chunks[0].key)
    assert record is not None
    store.backend.delete_folder(record.object)
    output.unlink()
    run_here(store, plan)
    assert output.read_bytes() == expected


def test_output_that_is_not_ours_is_kept_unless_overwrite(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "edited.mp4"
    output.write_bytes(b"precious")
    plan = compile_small(store, clip, output)
    with pytest.raises(UsageError, match="exists and is not ours"):
        run_here(store, plan)
    assert output.read_bytes() == b"precious"
    run_here(store, plan, overwrite=True)
    assert probe(output).num_frames == 24


def test_our_own_output_is_replaced_without_a_word(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "edited.mp4"
    run_here(store, compile_small(store, clip, output))
    stages = [*STAGES[:2], STAGES[2] | {"alpha": 0.2}, STAGES[3]]
    run_here(store, compile_small(store, clip, output, stages=stages))
    assert read_sidecar(str(output))["replaces"]


def test_unfinished_run_keeps_its_id_and_a_finished_one_does_not(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4")
    first = register(store, plan)
    assert register(store, plan).run == first.run
    finished = run_here(store, plan)
    assert finished.run == first.run
    assert register(store, plan).run != first.run


def test_failing_stage_is_one_clear_error_and_keeps_what_is_done(
    clip: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4")

    def explode(chunk: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setitem(group.STAGES, "fuse", explode)
    with pytest.raises(StageError, match=r"stage 'fuse', chunk 0 .*boom.*chunks are kept"):
        run_here(store, plan)
    assert read_state(store, store.runs()[0]).state == "failed"
    monkeypatch.undo()
    resumed = computed(run_here(store, plan))
    assert resumed["encode"] == resumed["invert"] == 0


def test_memory_error_says_what_to_lower(
    clip: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(chunk: object) -> None:
        raise MemoryError

    monkeypatch.setitem(group.STAGES, "encode", exhaust)
    with pytest.raises(ResourceError, match="out of memory; lower"):
        run_here(store, compile_small(store, clip, tmp_path / "edited.mp4"))


def test_stop_file_ends_a_run_between_chunks(
    clip: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4")
    stop = tmp_path / "stop"
    stop.touch()
    monkeypatch.setenv("LATENTLOOM_STOP_FILE", str(stop))
    with pytest.raises(InterruptedRunError):
        run_here(store, plan)
    assert read_state(store, store.runs()[0]).state == "interrupted"
    stop.unlink()
    assert run_here(store, plan).state == "finished"


def test_two_bits_for_one_chunk_end_in_one_record(clip: Path, store: Store, tmp_path: Path) -> None:
    plan = compile_small(store, clip, None, stages=STAGES[:1])
    run_here(store, plan)
    chunk = plan.by_name["encode"].chunks[0]
    first = store.find(chunk.key)
    other = np.ones((8, 4, 4, 4), dtype=np.float32)
    adopted = store.commit(chunk.key, other, start=chunk.start, stop=chunk.stop)
    assert adopted == first
    assert verify(store).damages == []


def test_odd_size_is_padded_and_cut_back(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 8)
    source = {"uri": str(clip), "size": {"width": 27, "height": 21}}
    output = tmp_path / "edited.mkv"
    plan = compile_small(store, clip, output, source=source, encoder={"codec": "ffv1"})
    run_here(store, plan)
    info = probe(output)
    assert (info.width, info.height, info.num_frames) == (27, 21, 8)


def test_cut_keeps_absolute_frames_and_shared_chunks(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    run_here(store, compile_small(store, clip, tmp_path / "whole.mp4"))
    source = {"uri": str(clip), "start": 1.0}
    after = run_here(store, compile_small(store, clip, tmp_path / "cut.mp4", source=source))
    assert computed(after)["encode"] == 0
    assert probe(tmp_path / "cut.mp4").num_frames == 16


def test_missing_and_damaged_sources_are_media_errors(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MediaError):
        compile_small(store, tmp_path / "none.mp4", None)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video" * 100)
    with pytest.raises(MediaError):
        compile_small(store, broken, None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_latents_come_back_as_numbers(
    clip: Path, store: Store, tmp_path: Path, dtype: str
) -> None:
    profile = {"threads": 1, "device": "cpu", "dtype": dtype}
    plan = compile_small(store, clip, tmp_path / "edited.mp4", numerics=profile)
    run_here(store, plan)
    full = compile_small(store, clip, tmp_path / "full.mp4")
    run_here(store, full)
    frames = [
        FrameReader(path, probe(path), width=None, height=None, fit="stretch").read(0, 24)
        for path in (tmp_path / "edited.mp4", tmp_path / "full.mp4")
    ]
    assert np.abs(frames[0].astype(float) - frames[1].astype(float)).mean() < 8


def test_output_metadata_holds_no_path_and_no_run(clip: Path, store: Store, tmp_path: Path) -> None:
    output = tmp_path / "edited.mp4"
    state = run_here(store, compile_small(store, clip, output))
    data = output.read_bytes()
    assert state.run.encode() not in data
    assert str(tmp_path).encode() not in data
    assert b"latentloom" in data
    assert json.loads((tmp_path / "edited.mp4.json").read_text())["run"] == state.run


def _read_stage(store: Store, plan: Plan, name: str) -> Any:
    return np.concatenate([store.read(chunk.key) for chunk in plan.by_name[name].chunks])


def _damage(store: Store, plan: Plan, name: str, index: int) -> None:
    record = store.find(plan.by_name[name].chunks[index].key)
    assert record is not None
    folder = Path(store.uri.removeprefix("file://")) / record.object
    file = next(path for path in folder.iterdir() if path.name.startswith("c."))
    data = bytearray(file.read_bytes())
    data[7] ^= 4
    file.write_bytes(bytes(data))


def test_source_that_changed_under_a_plan_poisons_nothing(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    plan = compile_small(store, clip, tmp_path / "edited.mp4")
    make_clip(tmp_path / "clip.mp4", 24, size=48)
    with pytest.raises(MediaError, match="has changed since the plan was made"):
        run_here(store, plan)
    assert not store.present(list(plan.keys()))


def test_moved_source_gets_a_run_of_its_own(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    output = tmp_path / "edited.mp4"
    first = register(store, compile_small(store, clip, output))
    moved = clip.rename(tmp_path / "moved.mp4")
    second = register(store, compile_small(store, moved, output))
    assert second.run != first.run
    assert second.plan == first.plan


def test_run_of_a_living_process_is_not_shared(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    plan = compile_small(store, clip, tmp_path / "edited.mp4")
    first = register(store, plan)
    with lease(store, lease_name(plan.digest)):
        assert register(store, plan).run != first.run


def test_many_damaged_chunks_are_all_computed_again(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    output = tmp_path / "edited.mp4"
    small = {"frames": 2}
    plan = compile_small(store, clip, output, chunks=small)
    run_here(store, plan)
    expected = output.read_bytes()
    for index in range(8):
        _damage(store, plan, "encode", index)
    for name in ("invert", "fuse", "encode_video"):
        for chunk in plan.by_name[name].chunks:
            store.delete(chunk.key)
    output.unlink()
    assert computed(run_here(store, plan))["encode"] == 8
    assert output.read_bytes() == expected


def test_frames_in_the_store_do_not_grow_with_the_video(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", 64)
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=[STAGES[0], STAGES[3]])
    frames = {chunk.key for chunk in plan.by_name["decode"].chunks}
    most = 0
    original = group.STAGES["encode_video"]

    def count(chunk: OpenChunk) -> Any:
        nonlocal most
        most = max(most, len(store.present(frames)))
        return original(chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(group.STAGES, "encode_video", count)
        run_here(store, plan)
    assert most == 1
    assert not store.present(frames)
