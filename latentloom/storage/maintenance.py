"""Look after a store: what is damaged, what can go, what takes the space."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from latentloom.errors import DamagedChunkError, MissingChunkError, StoreError
from latentloom.schemas.record import Record
from latentloom.storage import layout, runs
from latentloom.storage.backends import FileInfo, explained
from latentloom.storage.leases import expired_leases
from latentloom.storage.opening import check_format
from latentloom.storage.records import parse_record
from latentloom.storage.store import Store

DAY_SECONDS = 86_400.0

DamageKind = Literal["store", "record", "missing object", "object", "run", "stray"]


@dataclass(frozen=True)
class Damage:
    """One thing in a store that is not as it was written."""

    kind: DamageKind
    key: str | None
    path: str
    detail: str


@dataclass
class Report:
    """What ``verify`` found."""

    damages: list[Damage] = field(default_factory=list)
    checked: int = 0
    """Records looked at."""
    bytes: int = 0
    """Bytes of arrays read."""


@dataclass(frozen=True)
class Removed:
    """One thing that ``prune`` removed, or would."""

    kind: Literal["chunk", "orphan", "temporary", "lease"]
    path: str
    bytes: int


@dataclass
class PruneReport:
    """What ``prune`` removed, or would."""

    removed: list[Removed] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Bytes freed."""
        return sum(item.bytes for item in self.removed)


@dataclass
class Usage:
    """Files and bytes of one kind."""

    files: int = 0
    bytes: int = 0


def verify(store: Store) -> Report:
    """Read everything that a record or a plan proves, chunk by chunk.

    An object without a record is no damage: a run may be writing it, or was killed.
    """
    report = Report()
    with explained(store.uri, "verify"):
        report.damages += _verify_store_file(store)
        for info in store.backend.walk(layout.RECORDS):
            _verify_record(store, info.path, report)
        report.damages += _strays(store)
        for run_id in store.backend.names(layout.RUNS):
            report.damages += _verify_run(store, run_id)
    return report


def prune(
    store: Store,
    *,
    keep: Collection[str],
    dry_run: bool = False,
    min_age_seconds: float = DAY_SECONDS,
    orphan_age_seconds: float = DAY_SECONDS,
) -> PruneReport:
    """Remove what no registered plan needs, record first.

    Args:
        store: The store.
        keep: Keys that must stay, whatever their age.
        dry_run: Whether to report only.
        min_age_seconds: Records younger than this stay.
        orphan_age_seconds: Objects without a record, and temporary files, younger than this stay: a
            run may be about to commit them.
    """
    report = PruneReport()
    keep = frozenset(keep)
    now = time.time()
    with explained(store.uri, "prune"):
        objects = _objects(store)
        kept = _prune_records(store, report, objects, keep, now - min_age_seconds, dry_run)
        _prune_orphans(store, report, objects, kept, now - orphan_age_seconds, dry_run)
        _prune_temporary(store, report, now - orphan_age_seconds, dry_run)
        for path in expired_leases(store):
            report.removed.append(Removed("lease", path, 0))
            if not dry_run:
                store.backend.delete(path)
    return report


def usage(store: Store) -> dict[str, Usage]:
    """Count files and bytes by kind: the folders of ``docs/storage-layout.md``."""
    with explained(store.uri, "list"):
        return {kind: _usage_of(store, kind) for kind in layout.FOLDERS}


def _usage_of(store: Store, kind: str) -> Usage:
    total = Usage()
    for info in store.backend.walk(kind):
        total.files += 1
        total.bytes += info.size
    return total


# verify


def _verify_store_file(store: Store) -> list[Damage]:
    try:
        check_format(store.backend.read(layout.STORE_FILE), store.uri)
    except FileNotFoundError:
        return [Damage("store", None, layout.STORE_FILE, "missing")]
    except StoreError as error:
        return [Damage("store", None, layout.STORE_FILE, str(error))]
    return []


def _verify_record(store: Store, path: str, report: Report) -> None:
    key = layout.key_of_record(path)
    if key is None:
        report.damages.append(Damage("stray", None, path, "not the name of a record"))
        return
    report.checked += 1
    try:
        record = store.find(key)
        if record is not None:
            report.bytes += store.read(record).nbytes
    except MissingChunkError as error:
        if _find_or_none(store, key) is not None:  # else it was deleted meanwhile
            report.damages.append(Damage("missing object", key, path, str(error)))
    except DamagedChunkError as error:
        kind: DamageKind = "record" if _find_or_none(store, key) is None else "object"
        report.damages.append(Damage(kind, key, path, str(error)))


def _find_or_none(store: Store, key: str) -> Record | None:
    try:
        return store.find(key)
    except DamagedChunkError:
        return None


def _strays(store: Store) -> Iterator[Damage]:
    for path in _objects(store):
        if layout.key_of_object(path) is None:
            yield Damage("stray", None, path, "not the name of an object")


def _verify_run(store: Store, run_id: str) -> Iterator[Damage]:
    folder = f"{layout.RUNS}/{run_id}"
    names = store.backend.names(folder)
    if layout.PLAN_FILE in names:
        try:
            runs.read_plan(store.backend, run_id)
        except StoreError as error:
            yield Damage("run", None, f"{folder}/{layout.PLAN_FILE}", str(error))
    for info in store.backend.walk(f"{folder}/{layout.EVENTS}"):
        try:
            runs.read_events(store.backend, info.path)
        except StoreError as error:
            yield Damage("run", None, info.path, str(error))


# prune


def _objects(store: Store) -> dict[str, list[FileInfo]]:
    """Files of every object, by the object's folder."""
    found: dict[str, list[FileInfo]] = {}
    for info in store.backend.walk(layout.DATA):
        found.setdefault(str(PurePosixPath(info.path).parent), []).append(info)
    return found


def _prune_records(
    store: Store,
    report: PruneReport,
    objects: dict[str, list[FileInfo]],
    keep: frozenset[str],
    before: float,
    dry_run: bool,
) -> set[str]:
    """Remove old records that no plan needs, each with its object; return the objects that stay."""
    kept = set()
    for info in store.backend.walk(layout.RECORDS):
        key = layout.key_of_record(info.path)
        target = _object_of(store, info.path)
        if key is None or key in keep or info.modified > before:
            kept.add(target)
            continue
        size = info.size + sum(file.size for file in objects.pop(target or "", []))
        report.removed.append(Removed("chunk", info.path, size))
        if not dry_run:
            store.backend.delete(info.path)
            if target is not None:
                store.backend.delete_folder(target)
    return {path for path in kept if path is not None}


def _object_of(store: Store, path: str) -> str | None:
    with contextlib.suppress(FileNotFoundError, StoreError):
        return parse_record(store.backend.read(path), path).object
    return None


def _prune_orphans(
    store: Store,
    report: PruneReport,
    objects: dict[str, list[FileInfo]],
    kept: set[str],
    before: float,
    dry_run: bool,
) -> None:
    for path, files in objects.items():
        if path in kept or max(file.modified for file in files) > before:
            continue
        if layout.key_of_object(path) is None:
            continue  # not ours: verify names it
        report.removed.append(Removed("orphan", path, sum(file.size for file in files)))
        if not dry_run:
            store.backend.delete_folder(path)


def _prune_temporary(store: Store, report: PruneReport, before: float, dry_run: bool) -> None:
    entries: dict[str, list[FileInfo]] = {}
    for info in store.backend.walk(layout.TEMP):
        entries.setdefault("/".join(info.path.split("/")[:2]), []).append(info)
    for path, files in entries.items():
        if max(file.modified for file in files) > before:
            continue
        report.removed.append(Removed("temporary", path, sum(file.size for file in files)))
        if not dry_run:
            if files[0].path == path:
                store.backend.delete(path)
            else:
                store.backend.delete_folder(path)
