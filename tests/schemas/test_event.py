from __future__ import annotations

import pytest
from pydantic import ValidationError

from latentloom.schemas.event import Event


def test_an_event_survives_json() -> None:
    event = Event(time=1.5, kind="chunk_computed", run="01RUN", stage="encode", index=3, seconds=2)
    assert Event.model_validate_json(event.model_dump_json(exclude_defaults=True)) == event


@pytest.mark.parametrize(
    "change", [{"kind": "explosion"}, {"time": float("nan")}, {"seconds": -1}, {"colour": "red"}]
)
def test_an_event_of_no_known_form_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Event.model_validate({"time": 1.0, "kind": "note", "run": "01RUN", **change})
