from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import zarr

from latentloom.errors import DamagedChunkError, MissingChunkError, UsageError
from latentloom.schemas.record import Record
from latentloom.storage.export import export_stage
from latentloom.storage.lazy import lazy_array
from latentloom.storage.store import Store
from tests.storage.conftest import chunk_of, key_of


def stage(store: Store, *, dtype: str = "float16") -> list[Record]:
    """Frames 3:13 as chunks of 1, 4, 4 and 1 frames, like a cut on a grid of 4."""
    return [
        store.commit(
            key_of(start), chunk_of(start, frames=stop - start, dtype=dtype), start=start, stop=stop
        )
        for start, stop in [(3, 4), (4, 8), (8, 12), (12, 13)]
    ]


def whole(records: list[Record], store: Store) -> np.ndarray:
    return np.concatenate([store.read(record) for record in records])


def test_an_exported_stage_is_one_array_with_its_provenance(store: Store, tmp_path: Path) -> None:
    records = stage(store)
    target = tmp_path / "sub" / "out.zarr"
    keys = [record.key for record in reversed(records)]
    export_stage(store, keys, str(target), attributes={"run": "01RUN", "stage": "encode"})
    array = zarr.open_array(target, mode="r")
    np.testing.assert_array_equal(array[...], whole(records, store))
    attributes: dict[str, Any] = array.attrs.asdict()
    assert (attributes["start"], attributes["stop"], attributes["complete"]) == (3, 13, True)
    assert (attributes["run"], attributes["stage"]) == ("01RUN", "encode")
    assert [chunk["key"] for chunk in attributes["chunks"]] == keys[::-1]
    assert [path.name for path in target.parent.iterdir()] == ["out.zarr"]


def test_a_stage_is_exported_to_s3(s3_uri: str, store: Store, tmp_path: Path) -> None:
    records = stage(store)
    export_stage(store, records, f"{s3_uri}/out.zarr")
    fs, path = fsspec.url_to_fs(f"{s3_uri}/out.zarr", use_listings_cache=False)
    fs.get(path, str(tmp_path / "copy.zarr"), recursive=True)
    array = zarr.open_array(tmp_path / "copy.zarr", mode="r")
    np.testing.assert_array_equal(array[...], whole(records, store))
    with pytest.raises(UsageError, match="exists"):
        export_stage(store, records, f"{s3_uri}/out.zarr")


def test_an_existing_destination_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out.zarr").mkdir()
    with pytest.raises(UsageError, match="exists"):
        export_stage(store, stage(store), str(tmp_path / "out.zarr"))


def test_an_export_that_fails_leaves_nothing(store: Store, tmp_path: Path) -> None:
    records = stage(store)
    store.backend.write(f"{records[2].object}/c.0.0.0.0", b"damaged")
    target = tmp_path / "exports" / "out.zarr"
    with pytest.raises(DamagedChunkError):
        export_stage(store, records, str(target))
    assert list(target.parent.iterdir()) == []
    with pytest.raises(MissingChunkError):
        export_stage(store, [key_of("none")], str(target))


@pytest.mark.parametrize(
    ("pick", "what"), [([], "no chunks"), ([0, 2], "a gap"), ([0, 1, 1], "an overlap")]
)
def test_chunks_that_make_no_array_are_refused(
    store: Store, tmp_path: Path, pick: list[int], what: str
) -> None:
    records = [stage(store)[number] for number in pick]
    with pytest.raises(UsageError, match=what):
        export_stage(store, records, str(tmp_path / "out.zarr"))
    with pytest.raises(UsageError, match=what):
        lazy_array(store, records)


def test_chunks_of_another_kind_are_refused(store: Store) -> None:
    records = stage(store)
    other = store.commit(key_of("x"), chunk_of(1, dtype="float32"), start=13, stop=17)
    with pytest.raises(UsageError, match="no single array"):
        lazy_array(store, [*records, other])
    segment = store.commit(key_of("s"), np.zeros(100, "uint8"), start=13, stop=17)
    with pytest.raises(UsageError, match="100 rows"):
        lazy_array(store, [segment])


def test_a_lazy_array_reads_a_chunk_when_it_is_needed(any_store: Store) -> None:
    records = stage(any_store)
    lazy: Any = lazy_array(any_store, records[::-1])
    assert (lazy.shape, lazy.dtype, lazy.numblocks[0]) == ((10, 4, 8, 8), np.float16, 4)
    any_store.delete(records[3].key)
    np.testing.assert_array_equal(lazy[1:5].compute(), any_store.read(records[1]))
    with pytest.raises(MissingChunkError):
        lazy[-1].compute()


def test_bfloat16_is_exported_and_shown_as_float32(store: Store, tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0xC000]], dtype="uint16")
    record = store.commit(key_of("a"), bits, start=0, stop=1, dtype="bfloat16")
    export_stage(store, [record], str(tmp_path / "out.zarr"))
    array = zarr.open_array(tmp_path / "out.zarr", mode="r")
    np.testing.assert_array_equal(array[...], np.array([[1.0, -2.0]], "float32"))
    assert array.attrs["dtype"] == "bfloat16"
    lazy: Any = lazy_array(store, [record])
    np.testing.assert_array_equal(lazy.compute(), array[...])
