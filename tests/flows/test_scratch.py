import os
import tempfile
import time
from contextvars import Context
from pathlib import Path

import pytest

from latentloom.flows.environment import bypass_proxies_for_loopback, environment
from latentloom.flows.scratch import outermost_scratch, scratch_folder


def test_scratch_of_a_killed_run_is_removed_later_but_never_that_of_a_live_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / f"latentloom-{os.getuid()}-left"
    left.mkdir()
    young = tmp_path / f"latentloom-{os.getuid()}-young"
    young.mkdir()
    long_ago = time.time() - 1000
    with scratch_folder() as live:
        os.utime(left, (long_ago, long_ago))
        os.utime(live, (long_ago, long_ago))
        Context().run(open_and_close)  # as another run would
        assert live.exists()
        assert young.exists()
        assert not left.exists()
    assert not live.exists()


def test_a_run_has_one_folder_for_all_its_folders() -> None:
    with scratch_folder() as outer, scratch_folder() as middle, scratch_folder() as inner:
        assert outermost_scratch() == outer
        assert middle.parent == inner.parent == outer
    assert not outer.exists()


def open_and_close() -> None:
    with scratch_folder():
        pass


def test_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "1")
    with environment({"OLD": "2", "NEW": "3"}):
        assert (os.environ["OLD"], os.environ["NEW"]) == ("2", "3")
    assert os.environ["OLD"] == "1"
    assert "NEW" not in os.environ


def test_loopback_bypasses_proxies_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org")
    bypass_proxies_for_loopback()
    bypass_proxies_for_loopback()
    assert os.environ["NO_PROXY"] == "example.org,127.0.0.1"
