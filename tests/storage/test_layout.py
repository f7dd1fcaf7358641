from __future__ import annotations

import pytest

from latentloom.errors import StoreError
from latentloom.storage import layout

KEY = "ab" + "0" * 62


def test_records_and_objects_name_their_key() -> None:
    assert layout.record_path(KEY) == f"records/ab/{KEY}.json"
    assert layout.key_of_record(layout.record_path(KEY)) == KEY
    assert layout.key_of_object(layout.new_object_path(KEY)) == KEY
    assert layout.new_object_path(KEY) != layout.new_object_path(KEY)


@pytest.mark.parametrize(
    "path", ["records/cd/ab00112233.json", "records/ab/AB00112233.json", "records/ab/x", "x"]
)
def test_a_path_that_is_no_record_has_no_key(path: str) -> None:
    assert layout.key_of_record(path) is None
    assert layout.key_of_object(path) is None


@pytest.mark.parametrize("run_id", ["", "..", "a/b", ".x", "x" * 200, "ü"])
def test_a_run_id_must_be_a_file_name(run_id: str) -> None:
    with pytest.raises(StoreError, match="file name"):
        layout.run_folder(run_id)


def test_no_two_names_share_a_lease_or_a_cached_fact() -> None:
    names = ["a", "b", "a/b", "a\nb", "", "A", "x" * 300, "ü"]
    assert len({layout.lease_path(name) for name in names}) == len(names)
    assert len({layout.cache_path("probe", name) for name in names}) == len(names)
    assert all(path.count("/") == 1 for path in map(layout.lease_path, names))


def test_a_writer_becomes_part_of_a_file_name() -> None:
    assert layout.checked_writer("tcp://127.0.0.1:80") == "tcp---127-0-0-1-80"
    with pytest.raises(StoreError):
        layout.checked_writer("//")
