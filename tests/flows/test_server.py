import os
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from latentloom.flows import server
from latentloom.flows.environment import bypass_proxies_for_loopback, environment
from latentloom.flows.scratch import scratch_folder


@pytest.fixture
def seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.seed_path().parent.mkdir(parents=True)
    return server.seed_path()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def make_database(path: Path, *, migrated: bool = True) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        if migrated:
            connection.execute("INSERT INTO alembic_version VALUES ('abc')")
        connection.commit()


def test_a_migrated_database_seeds_a_home(seed: Path, home: Path) -> None:
    make_database(seed)
    assert server._seed_database(home)
    assert (home / "prefect.db").exists()


@pytest.mark.parametrize("damage", [b"", b"not a database at all, but long enough to be read"])
def test_a_damaged_cache_is_removed(seed: Path, home: Path, damage: bytes) -> None:
    seed.write_bytes(damage)
    assert not server._seed_database(home)
    assert not seed.exists()
    assert list(home.iterdir()) == []


def test_a_database_without_migrations_is_no_seed(seed: Path, home: Path) -> None:
    make_database(seed, migrated=False)
    assert not server._seed_database(home)


def test_the_seed_holds_what_was_only_in_the_write_ahead_log(seed: Path, home: Path) -> None:
    make_database(home / "prefect.db", migrated=False)
    with closing(sqlite3.connect(home / "prefect.db")) as writer:
        writer.execute("INSERT INTO alembic_version VALUES ('abc')")
        writer.commit()
        assert (home / "prefect.db-wal").stat().st_size > 0
        server._keep_seed(home)
    assert [path.name for path in seed.parent.iterdir()] == [seed.name]
    assert server._is_migrated(seed)


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
        with scratch_folder():
            assert live.exists()
            assert young.exists()
            assert not left.exists()
    assert not live.exists()


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
