from __future__ import annotations

import pytest
from pydantic import ValidationError

from latentloom.schemas.record import Record

KEY = "ab" + "0" * 62
FIELDS = {
    "key": KEY,
    "object": f"data/ab/{KEY}.0123456789abcdef",
    "sha256": "f" * 64,
    "shape": (16, 4, 8, 8),
    "dtype": "float16",
    "start": 16,
    "stop": 32,
}


def test_a_record_survives_json() -> None:
    record = Record.model_validate(FIELDS | {"attributes": {"step": 3}})
    assert Record.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    "change",
    [
        {"object": "data/ab/../../etc.0"},
        {"object": f"data/ab/{KEY[:-1]}1.0123456789abcdef"},
        {"object": f"records/ab/{KEY}.json"},
        {"key": "ABC"},
        {"sha256": "f" * 63},
        {"shape": ()},
        {"shape": (-1,)},
        {"stop": 15},
        {"format": 2},
        {"format": 0},
        {"host": "here"},
    ],
)
def test_a_record_that_proves_nothing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Record.model_validate(FIELDS | change)
