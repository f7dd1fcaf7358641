"""What comes back from a worker process of a crew."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import NoReturn

import pytest

from latentloom.errors import MediaError, StageError
from latentloom.flows import crew
from latentloom.flows.archive import Template

JOB = crew.Job(
    store="store",
    template=Template({}, Path("recipe.yaml")),
    source="one.mp4",
    output="out.mp4",
    overrides=(),
    workers=1,
)


class Unpicklable(Exception):
    """An error as client libraries have them: it can be sent, but not received."""

    def __init__(self, text: str, *, response: object) -> None:
        super().__init__(text)
        self.response = response


def test_error_of_a_library_comes_back_as_one_that_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_job: crew.Job) -> NoReturn:
        raise Unpicklable("500 Internal Server Error", response=object())

    monkeypatch.setattr(crew, "_edit", fail)
    with pytest.raises(StageError, match=r"one\.mp4: Unpicklable: 500 Internal") as caught:
        crew.edit_video(JOB)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_own_error_comes_back_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_job: crew.Job) -> NoReturn:
        raise MediaError("damaged")

    monkeypatch.setattr(crew, "_edit", fail)
    with pytest.raises(MediaError, match="damaged"):
        crew.edit_video(JOB)
