"""A cached database for the embedded server: empty, but migrated, which takes several seconds."""

import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

_DATABASE = "prefect.db"


def cache_folder() -> Path:
    """Name the user's cache folder for latentloom."""
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "latentloom"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "latentloom"
    return Path.home() / ".cache" / "latentloom"


def seed_path() -> Path:
    """Name the cached database for the Prefect that is installed."""
    return cache_folder() / f"prefect-{version('prefect')}.db"


def copy_to(home: Path) -> bool:
    """Copy the cached database into `home`; one that is missing or damaged counts as none."""
    with suppress(OSError):
        shutil.copyfile(seed_path(), home / _DATABASE)
        if is_migrated(home / _DATABASE):
            return True
    forget(home)
    return False


def forget(home: Path) -> None:
    """Remove the cached database, and what was copied of it."""
    for path in (seed_path(), *home.glob(f"{_DATABASE}*")):
        with suppress(OSError):
            path.unlink()


def keep(home: Path) -> None:
    """Cache the fresh database of `home`, unless the disk refuses.

    SQLite's own backup sees what is still in the write-ahead log of a running server. The rename
    is atomic: of several first runs at once, the last one wins, and nobody reads half a file.
    """
    with suppress(OSError, sqlite3.Error):
        seed_path().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=seed_path().parent, prefix="prefect-", suffix=".tmp")
        os.close(handle)
        try:
            _back_up(home / _DATABASE, Path(name))
            os.replace(name, seed_path())
        finally:
            Path(name).unlink(missing_ok=True)


def is_migrated(database: Path) -> bool:
    """Look whether a database is sound and has been through the migrations."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
            migrated = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return sound and migrated is not None
    except sqlite3.Error:
        return False


def _back_up(database: Path, copy: Path) -> None:
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("PRAGMA journal_mode=DELETE")
