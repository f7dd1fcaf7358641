from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from latentloom.storage.arrays import DTYPES, chunk_file, decode_array, digest, encode_array

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype), hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
    )
)


@settings(max_examples=60, deadline=None)
@given(ARRAYS)
@example(np.zeros((2, 3), "float16"))
@example(np.array([-0.0, np.nan, np.inf], "float32"))
def test_an_array_survives_to_the_bit(array: NDArray[Any]) -> None:
    files = encode_array(array)
    assert set(files) == {"zarr.json", chunk_file(array.ndim)}
    again = decode_array(files, array.shape, array.dtype.name)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()
    assert again.flags.writeable


@settings(max_examples=30, deadline=None)
@given(ARRAYS)
def test_zarr_reads_what_is_written_and_writes_the_same(array: NDArray[Any]) -> None:
    files = encode_array(array)
    buffers: Any = {name: cpu.Buffer.from_bytes(data) for name, data in files.items()}
    found = zarr.open_array(MemoryStore(buffers), mode="r+")
    assert np.asarray(found[...]).tobytes() == array.tobytes()
    buffers.pop(chunk_file(array.ndim))
    found.with_config({"write_empty_chunks": True})[...] = array
    assert {name: buffer.to_bytes() for name, buffer in buffers.items()} == files


@settings(max_examples=60, deadline=None)
@given(ARRAYS, ARRAYS)
def test_arrays_have_one_digest_only_if_they_are_equal(
    one: NDArray[Any], two: NDArray[Any]
) -> None:
    same = (one.dtype, one.shape, one.tobytes()) == (two.dtype, two.shape, two.tobytes())
    assert (digest(one, one.dtype.name) == digest(two, two.dtype.name)) == same


def test_the_digest_covers_shape_and_dtype_and_ignores_memory_order() -> None:
    array = np.arange(6, dtype="uint16").reshape(2, 3)
    assert digest(array, "uint16") != digest(array.reshape(3, 2), "uint16")
    assert digest(array, "uint16") != digest(array, "bfloat16")
    assert digest(array, "uint16") == digest(np.asfortranarray(array), "uint16")
    # Part of the format: records that exist hold it.
    assert digest(array, "uint16").startswith("1ab5b1d8abe918d7")


def test_the_files_say_what_the_format_promises() -> None:
    files = encode_array(np.zeros((2, 4, 8, 8), "float16"))
    metadata = json.loads(files["zarr.json"])
    assert metadata["zarr_format"] == 3
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == metadata["shape"]
    assert metadata["chunk_key_encoding"]["configuration"]["separator"] == "."
    assert len(files["c.0.0.0.0"]) == 2 * 4 * 8 * 8 * 2 + 4


def test_metadata_in_other_words_are_understood() -> None:
    files = encode_array(np.ones((2, 4), "float32"))
    metadata = json.loads(files["zarr.json"])
    del metadata["storage_transformers"]
    files["zarr.json"] = json.dumps(metadata).encode()
    assert decode_array(files, (2, 4), "float32").sum() == 8


@pytest.mark.parametrize("damage", ["fill_value", "shape", "data_type", "codecs", "attributes"])
def test_changed_metadata_are_found(damage: str) -> None:
    files = encode_array(np.ones((2, 4), "float32"))
    metadata = json.loads(files["zarr.json"])
    changed = {
        "fill_value": 1.0,
        "shape": [4, 2],
        "data_type": "int32",
        "codecs": metadata["codecs"][:1],
        "attributes": {"x": 1},
    }
    files["zarr.json"] = json.dumps({**metadata, damage: changed[damage]}).encode()
    with pytest.raises(ValueError, match="describe"):
        decode_array(files, (2, 4), "float32")
