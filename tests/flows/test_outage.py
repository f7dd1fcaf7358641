"""A server that is away for a while fails no video."""

from __future__ import annotations

import httpx
import pytest

from latentloom.flows import outage
from latentloom.flows.outage import outlast


class Away:
    """Work that reaches its server at the n-th try."""

    def __init__(self, misses: int) -> None:
        self.misses, self.tries = misses, 0

    def __call__(self) -> str:
        self.tries += 1
        if self.tries <= self.misses:
            raise httpx.ConnectError("refused")
        return "done"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0.0)


def test_work_is_done_again_once_the_server_is_back() -> None:
    work = Away(misses=3)
    assert outlast(work) == "done"
    assert work.tries == 4


def test_server_that_stays_away_is_an_error() -> None:
    with pytest.raises(httpx.ConnectError):
        outlast(Away(misses=9**9), seconds=0.05)


def test_other_errors_are_not_tried_again() -> None:
    tries = []

    def fail() -> None:
        tries.append(1)
        raise ValueError("not the server's")

    with pytest.raises(ValueError, match="not the server"):
        outlast(fail)
    assert len(tries) == 1
