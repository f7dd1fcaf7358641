"""Checkpoints inside a chunk: what is saved comes back to the bit, and nothing stays longer than it must."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentloom.schemas.base import digest
from latentloom.schemas.plan import PlannedChunk, PlannedStage
from latentloom.storage.store import Store
from latentloom.tasks.checkpoints import StepCheckpoints, StepState
from tests.storage.faults import KillAfter, Killed


def stage_of(*steps: int) -> PlannedStage:
    return PlannedStage(
        name="fuse",
        op="fuse",
        unit="windows",
        produces="latents",
        inputs=(),
        frame_shape=(4, 2, 2),
        dtype="float16",
        variants=(),
        chunks=(PlannedChunk(key=digest("chunk"), start=8, stop=11),),
        checkpoints=steps,
    )


def states(num: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(num, 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def opened(store: Store, *steps: int) -> StepCheckpoints:
    stage = stage_of(*steps)
    return StepCheckpoints(store, stage, stage.chunks[0])


@pytest.mark.parametrize("num_states", [1, 2, 4])
def test_states_come_back_to_the_bit_whatever_the_dtype_of_the_stage(
    store: Store, num_states: int
) -> None:
    checkpoints, kept = opened(store, 10, 20), states(num_states)
    checkpoints.save(StepState(10, kept, {"weights": [0.3, 0.7]}))
    found = opened(store, 10, 20).newest()
    assert found is not None
    assert (found.step, found.attributes) == (10, {"weights": [0.3, 0.7]})
    assert len(found.states) == num_states
    assert all(torch.equal(a, b) for a, b in zip(found.states, kept, strict=True))
    assert all(state.is_contiguous() for state in found.states)


def test_next_checkpoint_replaces_the_one_before_and_the_chunk_all(store: Store) -> None:
    checkpoints = opened(store, 10, 20)
    assert checkpoints.newest() is None
    keys = [checkpoints.chunk.checkpoint_key(step) for step in (10, 20)]
    for step in (10, 20):
        checkpoints.save(StepState(step, states(2, step)))
    assert store.present(keys) == {keys[1]}
    checkpoints.delete()
    assert store.present(keys) == set()
    assert not any(path.is_file() for path in Path(store.uri, "data").rglob("*"))


def test_damaged_checkpoint_falls_back_to_the_one_before(store: Store) -> None:
    old = opened(store, 10)
    old.save(StepState(10, states(2, 10)))
    new = opened(store, 20)
    new.save(StepState(20, states(2, 20)))
    both = opened(store, 10, 20)
    record = store.find(both.chunk.checkpoint_key(20))
    assert record is not None
    path = Path(store.uri, record.object, "c.0.0.0.0.0")
    data = bytearray(path.read_bytes())
    data[7] ^= 4
    path.write_bytes(data)
    found = both.newest()
    assert found is not None
    assert found.step == 10
    assert store.find(record.key) is None


def test_vanished_checkpoint_is_a_miss(store: Store) -> None:
    checkpoints = opened(store, 10)
    checkpoints.save(StepState(10, states(2)))
    record = store.find(checkpoints.chunk.checkpoint_key(10))
    assert record is not None
    store.backend.delete_folder(record.object)
    assert checkpoints.newest() is None


def test_killed_while_saving_the_older_checkpoint_is_whole(store: Store) -> None:
    opened(store, 10, 20).save(StepState(10, states(2, 10)))
    counted = KillAfter(store.backend, None)
    for k in range(40):
        before = opened(store, 10, 20).newest()
        assert before is not None
        counted = KillAfter(store.backend, k)
        try:
            opened(Store(counted), 10, 20).save(StepState(20, states(2, 20)))
        except Killed:
            found = opened(store, 10, 20).newest()
            assert found is not None
            assert torch.equal(found.states[1], states(2, found.step)[1])
        else:
            break
    assert not counted.killed
    assert len(store.present([opened(store).chunk.checkpoint_key(step) for step in (10, 20)])) == 1
