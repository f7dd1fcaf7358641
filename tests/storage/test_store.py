from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from latentloom.errors import (
    DamagedChunkError,
    LatentloomError,
    MissingChunkError,
    ResourceError,
    StoreError,
    StoreFormatError,
)
from latentloom.storage import layout
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import verify
from latentloom.storage.records import encode_record
from latentloom.storage.store import Store
from tests.storage.conftest import chunk_of, key_of
from tests.storage.faults import FailFrom, FlipBit, ShortRead


def test_what_is_committed_is_read(any_store: Store) -> None:
    array = chunk_of(1)
    record = any_store.commit(key_of("a"), array, start=16, stop=20, attributes={"step": 3})
    assert any_store.find(key_of("a")) == record
    assert (record.start, record.stop, record.attributes) == (16, 20, {"step": 3})
    np.testing.assert_array_equal(any_store.read(record), array)
    np.testing.assert_array_equal(any_store.read(key_of("a")), array)


def test_the_first_of_two_commits_wins_and_the_loser_leaves_nothing(any_store: Store) -> None:
    first = any_store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    second = any_store.commit(key_of("a"), chunk_of(2), start=0, stop=4)
    assert second == first
    assert len(any_store.backend.names(f"data/{key_of('a')[:2]}")) == 1
    np.testing.assert_array_equal(any_store.read(second), chunk_of(1))


def test_a_deleted_chunk_is_gone_with_its_object(any_store: Store) -> None:
    record = any_store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    assert any_store.delete(key_of("a"))
    assert not any_store.delete(key_of("a"))
    assert any_store.find(key_of("a")) is None
    assert not any_store.has_object(record)
    with pytest.raises(MissingChunkError, match="Run the same command again"):
        any_store.read(key_of("a"))


def test_present_says_which_of_many_have_a_record(any_store: Store) -> None:
    keys = [f"{number % 3:02x}{key_of(number)}" for number in range(30)]
    for key in keys[:20]:
        any_store.backend.create(layout.record_path(key), b"{}", durable=False)
    assert any_store.present(keys) == set(keys[:20])
    assert any_store.present(keys[18:22]) == set(keys[18:20])
    assert any_store.present([]) == set()


def test_a_record_whose_object_vanished_is_a_miss_and_is_replaced(any_store: Store) -> None:
    stale = any_store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    any_store.backend.delete_folder(stale.object)
    with pytest.raises(MissingChunkError, match=stale.object):
        any_store.read(key_of("a"))
    fresh = any_store.commit(key_of("a"), chunk_of(2), start=0, stop=4)
    assert fresh.object != stale.object
    np.testing.assert_array_equal(any_store.read(key_of("a")), chunk_of(2))
    np.testing.assert_array_equal(any_store.read(stale), chunk_of(2))


def test_an_all_zero_chunk_is_done(any_store: Store) -> None:
    zeros = np.zeros((2, 4, 8, 8), dtype="float32")
    record = any_store.commit(key_of("zero"), zeros, start=0, stop=2)
    assert any_store.backend.info(f"{record.object}/c.0.0.0.0").size == zeros.nbytes + 4
    np.testing.assert_array_equal(any_store.read(record), zeros)
    any_store.backend.delete(f"{record.object}/c.0.0.0.0")
    with pytest.raises(MissingChunkError):
        any_store.read(record)


def test_bfloat16_is_stored_as_its_bits(store: Store) -> None:
    bits = np.array([[0x3F80, 0xC000]], dtype="uint16")
    record = store.commit(key_of("a"), bits, start=0, stop=1, dtype="bfloat16")
    assert record.dtype == "bfloat16"
    np.testing.assert_array_equal(store.read(record), bits)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros((1,), "float32"), "bfloat16"),
        (np.zeros((1,), "complex64"), None),
        (np.zeros((0, 4), "float32"), None),
        (np.zeros((), "float32"), None),
    ],
)
def test_what_cannot_be_stored_is_refused(
    store: Store, array: np.ndarray, dtype: str | None
) -> None:
    with pytest.raises(StoreError, match="cannot store"):
        store.commit(key_of("a"), array, start=0, stop=1, dtype=dtype)


@pytest.mark.parametrize("suffix", ["zarr.json", "c.0.0.0.0", ".json"])
@pytest.mark.parametrize("place", range(0, 4000, 397))
def test_a_flipped_bit_is_found(tmp_path: Path, suffix: str, place: int) -> None:
    sound = Store.open(str(tmp_path))
    sound.commit(key_of("a"), chunk_of(1), start=0, stop=4, attributes={"step": 1})
    damaged = Store(FlipBit(LocalBackend(tmp_path), suffix, bit=place))
    with pytest.raises(DamagedChunkError, match=key_of("a")):
        damaged.read(key_of("a"))
    assert len(verify(damaged).damages) == 1 + (suffix == ".json")


@pytest.mark.parametrize("suffix", ["zarr.json", "c.0.0.0.0"])
def test_a_short_read_is_found(tmp_path: Path, suffix: str) -> None:
    Store.open(str(tmp_path)).commit(key_of("a"), chunk_of(1), start=0, stop=4)
    with pytest.raises(DamagedChunkError):
        Store(ShortRead(LocalBackend(tmp_path), suffix)).read(key_of("a"))


def test_a_damaged_record_is_an_error_until_the_chunk_is_committed_again(store: Store) -> None:
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.backend.write(layout.record_path(key_of("a")), b'{"key": ')
    with pytest.raises(DamagedChunkError, match="delete it and run"):
        store.find(key_of("a"))
    record = store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    assert store.find(key_of("a")) == record


def test_a_damaged_record_can_be_deleted(store: Store) -> None:
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.backend.write(layout.record_path(key_of("a")), b"[]")
    assert store.delete(key_of("a"))
    assert store.find(key_of("a")) is None


def test_a_record_holds_nothing_that_differs_between_two_workers(tmp_path: Path) -> None:
    one = Store.open(str(tmp_path / "one")).commit(key_of("a"), chunk_of(1), start=0, stop=4)
    two = Store.open(str(tmp_path / "two")).commit(key_of("a"), chunk_of(1), start=0, stop=4)
    assert one.model_copy(update={"object": ""}) == two.model_copy(update={"object": ""})
    assert encode_record(one.model_copy(update={"object": two.object})) == encode_record(two)


@pytest.mark.parametrize("k", [1, 2])
def test_a_full_disk_keeps_what_is_there_and_says_what_to_do(tmp_path: Path, k: int) -> None:
    sound = Store.open(str(tmp_path))
    kept = sound.commit(key_of("kept"), chunk_of(1), start=0, stop=4)
    full = Store(FailFrom(LocalBackend(tmp_path), k))
    with pytest.raises(ResourceError, match="free some space"):
        full.commit(key_of("a"), chunk_of(2), start=4, stop=8)
    assert sound.find(key_of("a")) is None
    assert sound.backend.names(f"data/{key_of('a')[:2]}") == []
    np.testing.assert_array_equal(sound.read(kept), chunk_of(1))


def test_a_write_that_fails_once_succeeds_when_tried_again(tmp_path: Path) -> None:
    Store.open(str(tmp_path))
    store = Store(FailFrom(LocalBackend(tmp_path), 2, times=1, number=5))
    with pytest.raises(StoreError, match="cannot write store"):
        store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    assert verify(store).damages == []


def test_a_creation_whose_answer_was_lost_still_wins(tmp_path: Path) -> None:
    class LostAnswer(LocalBackend):
        def create(self, path: str, data: bytes, *, durable: bool = True) -> None:
            super().create(path, data, durable=durable)
            raise FileExistsError(path)

    Store.open(str(tmp_path))
    store = Store(LostAnswer(tmp_path))
    record = store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    np.testing.assert_array_equal(store.read(record), chunk_of(1))


def test_a_store_pickles_and_its_uri_opens_it_elsewhere(any_store: Store) -> None:
    any_store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    again: Store = pickle.loads(pickle.dumps(any_store))
    assert again.uri == any_store.uri == Store.open(any_store.uri, create=False).uri
    np.testing.assert_array_equal(again.read(key_of("a")), chunk_of(1))


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store.open("sub/../store").uri == str(tmp_path / "store")
    assert Store.open(f"file://{tmp_path}/store").uri == str(tmp_path / "store")


def test_a_newer_format_is_refused(any_store: Store) -> None:
    any_store.backend.write(layout.STORE_FILE, b'{"format": 2}')
    with pytest.raises(StoreFormatError, match="install a newer latentloom"):
        Store.open(any_store.uri)


def test_a_record_of_a_newer_format_is_refused(store: Store) -> None:
    from latentloom.storage.sealed import seal

    record = store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    newer = {**record.model_dump(mode="json"), "format": 2, "codec": "zstd"}
    store.backend.write(layout.record_path(record.key), seal(newer))
    with pytest.raises(StoreFormatError, match="format 2"):
        store.find(record.key)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": "1"}', b'{"format": 0}', b"[1]"])
def test_a_damaged_store_file_is_an_error(store: Store, content: bytes) -> None:
    store.backend.write(layout.STORE_FILE, content)
    with pytest.raises(StoreError, match="damaged"):
        Store.open(store.uri)


def test_a_store_that_is_not_there_is_an_error_without_create(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(str(tmp_path / "none"), create=False)
    assert not (tmp_path / "none").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        Store.open(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_made_halfway_is_opened(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "0123").write_bytes(b"{")
    Store.open(str(tmp_path))


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "s3://no-such-bucket-here/x"])
def test_a_place_that_cannot_be_opened_is_a_store_error(uri: str, s3_endpoint: str) -> None:
    with pytest.raises(StoreError):
        Store.open(uri)


def test_a_file_where_the_store_should_be_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open store"):
        Store.open(str(tmp_path / "file"))


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "ABCDEF0123", "abc", "g" * 64])
def test_a_name_that_is_no_key_is_refused(store: Store, key: str) -> None:
    with pytest.raises(StoreError, match="hexadecimal"):
        store.find(key)


def test_cached_facts_are_kept_and_damaged_ones_are_a_miss(any_store: Store) -> None:
    key = "/videos/a film.mp4\n123"
    assert any_store.cached("probe", key) is None
    any_store.put_cached("probe", key, {"pts": [0, 1], "codec": "h264"})
    any_store.put_cached("probe", key, {"pts": [0, 1, 2], "codec": "h264"})
    assert any_store.cached("probe", key) == {"pts": [0, 1, 2], "codec": "h264"}
    path = layout.cache_path("probe", key)
    any_store.backend.write(path, any_store.backend.read(path).replace(b"h264", b"h265"))
    assert any_store.cached("probe", key) is None


def test_errors_pickle(store: Store) -> None:
    record = store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    store.backend.delete_folder(record.object)
    with pytest.raises(LatentloomError) as caught:
        store.read(record)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_an_object_is_a_zarr_array_for_anyone(store: Store) -> None:
    import zarr

    record = store.commit(key_of("a"), chunk_of(1), start=0, stop=4)
    array = zarr.open_array(f"{store.uri}/{record.object}", mode="r")
    np.testing.assert_array_equal(array[...], chunk_of(1))
    metadata = json.loads(store.backend.read(f"{record.object}/zarr.json"))
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
