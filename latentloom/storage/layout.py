"""Where things lie in a store. Every path is made here, from names that are checked here."""

from __future__ import annotations

import hashlib
import re
import secrets

from latentloom.errors import StoreError

STORE_FORMAT = 1

STORE_FILE = "store.json"
RECORDS = "records"
DATA = "data"
RUNS = "runs"
LEASES = "leases"
CACHE = "cache"
BATCHES = "batches"
TEMP = "tmp"
FOLDERS = (RECORDS, DATA, RUNS, BATCHES, LEASES, CACHE, TEMP)

PLAN_FILE = "plan.json"
PLAN_DIGEST_FILE = "plan.sha256"
EVENTS = "events"

_KEY = re.compile(r"[0-9a-f]{8,128}")
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
_RECORD = re.compile(rf"{RECORDS}/([0-9a-f]{{2}})/([0-9a-f]{{8,128}})\.json")
_OBJECT = re.compile(rf"{DATA}/([0-9a-f]{{2}})/([0-9a-f]{{8,128}})\.[0-9a-z]{{1,64}}")


def record_folder(key: str) -> str:
    """Folder of the record of ``key``."""
    return f"{RECORDS}/{_checked_key(key)[:2]}"


def record_path(key: str) -> str:
    """Path of the record of ``key``.

    >>> record_path("ab12cd34")
    'records/ab/ab12cd34.json'
    """
    return f"{record_folder(key)}/{key}.json"


def new_object_path(key: str) -> str:
    """Folder for one more object of ``key``; random, since no object is shared or overwritten."""
    return f"{DATA}/{_checked_key(key)[:2]}/{key}.{secrets.token_hex(8)}"


def key_of_record(path: str) -> str | None:
    """Key that a record's path names, or None where no record may lie.

    >>> key_of_record("records/ab/ab12cd34.json")
    'ab12cd34'
    >>> key_of_record("records/ff/ab12cd34.json") is None
    True
    """
    return _key_in(_RECORD, path)


def key_of_object(path: str) -> str | None:
    """Key that an object's folder names, or None where no object may lie."""
    return _key_in(_OBJECT, path)


def run_folder(run_id: str) -> str:
    """Folder of a run."""
    return f"{RUNS}/{_checked_name(run_id, 'run id')}"


def plan_path(run_id: str) -> str:
    """Path of a run's plan; a run is registered when it exists."""
    return f"{run_folder(run_id)}/{PLAN_FILE}"


def plan_digest_path(run_id: str) -> str:
    """Path of the plan's sha256, in the format of ``sha256sum``."""
    return f"{run_folder(run_id)}/{PLAN_DIGEST_FILE}"


def run_file_path(run_id: str, name: str) -> str:
    """Path of a small file of a run that may be overwritten."""
    if name in (PLAN_FILE, PLAN_DIGEST_FILE, EVENTS):
        raise StoreError(f"run file {name!r} is written by register_run or append_events only")
    return f"{run_folder(run_id)}/{_checked_name(name, 'run file')}"


def events_folder(run_id: str) -> str:
    """Folder of a run's events."""
    return f"{run_folder(run_id)}/{EVENTS}"


def event_path(run_id: str, name: str) -> str:
    """Path of one file of a run's events."""
    return f"{events_folder(run_id)}/{_checked_name(name, 'event file')}"


def batch_folder(batch: str) -> str:
    """Folder of a batch: a small file for each of its videos."""
    return f"{BATCHES}/{_checked_name(batch, 'batch')}"


def batch_file_path(batch: str, name: str) -> str:
    """Path of what is known of one video of a batch."""
    return f"{batch_folder(batch)}/{_checked_name(name, 'video record')}"


def lease_path(name: str) -> str:
    """Path of a lease; a name that cannot be a file name is hashed."""
    plain = name if _NAME.fullmatch(name) else "h" + hashlib.sha256(name.encode()).hexdigest()
    return f"{LEASES}/{plain}.json"


def cache_path(kind: str, key: str) -> str:
    """Path of a cached fact; ``key`` may be any text."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{CACHE}/{_checked_name(kind, 'cache kind')}/{digest}.json"


def checked_writer(writer: str) -> str:
    """Turn the name of a worker into one that can be part of a file name."""
    return _checked_name(re.sub(r"[^0-9A-Za-z_-]", "-", writer).strip("-")[:64], "writer")


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise StoreError(f"chunk key {key!r} is not 8 to 128 lower-case hexadecimal digits")
    return key


def _checked_name(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{what} {name!r} cannot be a file name; use letters, digits, '.', '_' and '-'"
        )
    return name


def _key_in(pattern: re.Pattern[str], path: str) -> str | None:
    match = pattern.fullmatch(path)
    if match is None or not match[2].startswith(match[1]):
        return None
    return match[2]
