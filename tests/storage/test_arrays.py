from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from latentloom.storage.arrays import DTYPES, chunk_file, decode_array, digest, encode_array

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype), hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
    )
)


def files_of(array: NDArray[Any]) -> dict[str, bytearray]:
    return {name: bytearray().join(parts) for name, parts in encode_array(array).items()}


@settings(max_examples=60, deadline=None)
@given(ARRAYS)
@example(np.zeros((2, 3), "float16"))
@example(np.array([-0.0, np.nan, np.inf], "float32"))
def test_an_array_survives_to_the_bit(array: NDArray[Any]) -> None:
    files = files_of(array)
    assert set(files) == {"zarr.json", chunk_file(array.ndim)}
    again = decode_array(files, array.shape, array.dtype.name)
    assert (again.dtype, again.shape) == (array.dtype, array.shape)
    assert again.tobytes() == array.tobytes()
    assert again.flags.writeable


@settings(max_examples=30, deadline=None)
@given(ARRAYS)
def test_zarr_reads_what_is_written_and_writes_the_same(array: NDArray[Any]) -> None:
    files = files_of(array)
    buffers: Any = {name: cpu.Buffer.from_bytes(data) for name, data in files.items()}
    found = zarr.open_array(MemoryStore(buffers), mode="r")
    assert np.asarray(found[...]).tobytes() == array.tobytes()

    again: dict[str, Any] = {}
    made = zarr.create_array(
        store=MemoryStore(again),
        shape=array.shape,
        chunks=array.shape,
        dtype=array.dtype,
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    made[...] = array
    assert made.metadata == found.metadata
    assert again[chunk_file(array.ndim)].to_bytes() == files[chunk_file(array.ndim)]


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
    # Part of the format: records that exist hold it, and objects have these bytes.
    assert digest(array, "uint16").startswith("1ab5b1d8abe918d7")
    metadata = files_of(array)["zarr.json"]
    assert hashlib.sha256(metadata).hexdigest().startswith("37b91e986985034d")


def test_the_files_say_what_the_format_promises() -> None:
    files = files_of(np.zeros((2, 4, 8, 8), "float16"))
    metadata = json.loads(files["zarr.json"])
    assert metadata["zarr_format"] == 3
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == metadata["shape"]
    assert metadata["chunk_key_encoding"]["configuration"]["separator"] == "."
    assert len(files["c.0.0.0.0"]) == 2 * 4 * 8 * 8 * 2 + 4


def test_every_flipped_bit_is_found() -> None:
    files = files_of(np.ones((1, 2), "float16"))
    for name, data in files.items():
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ValueError, match=r"describe|crc32c"):
                decode_array({**files, name: flipped}, (1, 2), "float16")
