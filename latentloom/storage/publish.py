"""Create the record of a durable object: of many workers one wins, the others adopt its record."""

from __future__ import annotations

import logging

from latentloom.errors import DamagedChunkError, StoreError
from latentloom.schemas.record import Record
from latentloom.storage import layout
from latentloom.storage.backends import DISK_FULL, Backend, delete_if_same
from latentloom.storage.objects import has_object
from latentloom.storage.records import encode_record, parse_record

_log = logging.getLogger(__name__)

# Every round means that another worker changed the record meanwhile.
_ROUNDS = 20


def publish(backend: Backend, record: Record) -> Record:
    """Create a record; where one exists, delete this worker's object and return that record.

    Args:
        backend: Where the store is.
        record: A record whose object is durable.

    Returns:
        The record that holds now.
    """
    try:
        return _create(backend, record)
    except OSError as error:
        # Only then: after a lost answer the record may exist, and the object must stay.
        if error.errno in DISK_FULL and not _is_published(backend, record):
            backend.delete_folder(record.object)
        raise


def _create(backend: Backend, record: Record) -> Record:
    path, data = layout.record_path(record.key), encode_record(record)
    for _ in range(_ROUNDS):
        try:
            backend.create(path, data)
        except FileExistsError:
            winner = _winner(backend, path)
            if winner is None:
                continue
            if winner.object != record.object:  # equal where the answer to our creation was lost
                backend.delete_folder(record.object)
            return winner
        return record
    raise StoreError(
        f"{path} in store {backend.uri} was replaced {_ROUNDS} times while it was committed; "
        "look for another program that changes the store"
    )


def _winner(backend: Backend, path: str) -> Record | None:
    """Read the record that came first; one that proves nothing is deleted."""
    try:
        data = backend.read(path)
    except FileNotFoundError:
        return None
    try:
        winner = parse_record(data, path)
    except DamagedChunkError as error:
        _log.warning("%s; replacing it", error)
    else:
        if has_object(backend, winner):
            return winner
        _log.warning("object %s has gone; replacing its record", winner.object)
    delete_if_same(backend, path, data)
    return None


def _is_published(backend: Backend, record: Record) -> bool:
    try:
        return backend.read(layout.record_path(record.key)) == encode_record(record)
    except FileNotFoundError:
        return False
