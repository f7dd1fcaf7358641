import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from latentloom.flows import seed


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seed.seed_path().parent.mkdir(parents=True)
    return seed.seed_path()


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


def test_a_migrated_database_seeds_a_home(cached: Path, home: Path) -> None:
    make_database(cached)
    assert seed.copy_to(home)
    assert (home / "prefect.db").exists()


@pytest.mark.parametrize("damage", [b"", b"not a database at all, but long enough to be read"])
def test_a_damaged_cache_is_removed(cached: Path, home: Path, damage: bytes) -> None:
    cached.write_bytes(damage)
    assert not seed.copy_to(home)
    assert not cached.exists()
    assert list(home.iterdir()) == []


def test_a_database_without_migrations_is_no_seed(cached: Path, home: Path) -> None:
    make_database(cached, migrated=False)
    assert not seed.copy_to(home)


def test_the_seed_holds_what_was_only_in_the_write_ahead_log(cached: Path, home: Path) -> None:
    make_database(home / "prefect.db", migrated=False)
    with closing(sqlite3.connect(home / "prefect.db")) as writer:
        writer.execute("INSERT INTO alembic_version VALUES ('abc')")
        writer.commit()
        assert (home / "prefect.db-wal").stat().st_size > 0
        seed.keep(home)
    assert [path.name for path in cached.parent.iterdir()] == [cached.name]
    assert seed.is_migrated(cached)
