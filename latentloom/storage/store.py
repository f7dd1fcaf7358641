"""The store: chunks and their records, runs, and cached facts, in a folder or at any fsspec URI.

A record is the only proof that a chunk is done. It is created exclusively once its object is
durable; the first one wins, and the loser deletes its own object and adopts the winner's.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

from numpy.typing import NDArray
from pydantic import JsonValue

from latentloom.errors import DamagedChunkError, MissingChunkError
from latentloom.schemas.event import Event
from latentloom.schemas.record import Record
from latentloom.storage import arrays, layout, runs
from latentloom.storage.backends import Backend, explained
from latentloom.storage.objects import has_object, read_object, write_object
from latentloom.storage.opening import ensure_store, open_backend
from latentloom.storage.publish import publish
from latentloom.storage.records import parse_record
from latentloom.storage.sealed import seal, unseal

# Below this many keys of one folder, asking for each is cheaper than listing the folder.
_LIST_FROM = 4

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Store:
    """Chunks, records, runs and cached facts at one place. Pickles as its URI."""

    def __init__(self, backend: Backend) -> None:
        """Use a backend as it is; ``Store.open`` also checks or makes the store."""
        self.backend = backend

    @classmethod
    def open(cls, uri: str, *, create: bool = True) -> Store:
        """Open a store, and make it if there is none.

        Args:
            uri: A local path or any fsspec URI whose file system can create a file exclusively.
            create: Whether to make a store where there is none.

        Raises:
            StoreError: There is no store, or something else lies there.
            StoreFormatError: The store was written by a newer version.
        """
        with explained(uri, "open"):
            backend = open_backend(uri)
            ensure_store(backend, create=create)
        return cls(backend)

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        return (Store.open, (self.uri,))

    @property
    def uri(self) -> str:
        """Where the store is: absolute, so that another process can open it."""
        return self.backend.uri

    # chunks

    def find(self, key: str) -> Record | None:
        """Look up the record of a chunk; its object is not looked at.

        Raises:
            DamagedChunkError: The record cannot be read.
        """
        path = layout.record_path(key)
        with explained(self.uri, "read"):
            try:
                data = self.backend.read(path)
            except FileNotFoundError:
                return None
        return parse_record(data, path)

    def present(self, keys: Collection[str]) -> set[str]:
        """Say which of many chunks have a record, by listing folders where that is cheaper."""
        folders: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            folders[layout.record_folder(key)].append(key)
        with explained(self.uri, "list"):
            found = self._map(self._present_in, folders.items())
        return set().union(*found)

    def commit(
        self,
        key: str,
        array: NDArray[Any],
        *,
        start: int,
        stop: int,
        dtype: str | None = None,
        attributes: Mapping[str, JsonValue] | None = None,
    ) -> Record:
        """Make a chunk durable, then its record. What another worker committed first wins.

        Args:
            key: Chunk key.
            array: The chunk, frames first; bfloat16 as uint16 bits.
            start: First source frame.
            stop: Source frame after the last one.
            dtype: True dtype, where it is not the array's own.
            attributes: What a reader must know besides, the same for every worker.

        Returns:
            The record that holds now: this worker's, or an earlier one whose object is there.

        Raises:
            ResourceError: The disk is full; nothing that has a record is lost.
        """
        array, true_dtype = arrays.storable(array, dtype)
        record = Record(
            key=key,
            object=layout.new_object_path(key),
            sha256=arrays.digest(array, true_dtype),
            shape=array.shape,
            dtype=true_dtype,
            start=start,
            stop=stop,
            attributes=dict(attributes or {}),
        )
        with explained(self.uri, "write"):
            write_object(self.backend, record, array)
            return publish(self.backend, record)

    def read(self, record_or_key: Record | str) -> NDArray[Any]:
        """Read a chunk and check every byte of it; bfloat16 comes as uint16 bits.

        Raises:
            MissingChunkError: There is no record, or its object has gone.
            DamagedChunkError: The bytes are not those that were committed.
        """
        if isinstance(record_or_key, str):
            record = self.find(record_or_key)
            if record is None:
                raise MissingChunkError(
                    f"store {self.uri} has no chunk {record_or_key}. "
                    "Run the same command again; finished chunks are kept"
                )
        else:
            record = record_or_key
        try:
            with explained(self.uri, "read", passing=FileNotFoundError):
                return read_object(self.backend, record)
        except FileNotFoundError:
            current = self.find(record.key)
        if current is None or current.object == record.object:
            raise MissingChunkError(
                f"object {record.object} of chunk {record.key} has gone from store {self.uri}. "
                "Run the same command again; it will be computed anew"
            )
        return self.read(current)

    def delete(self, key: str) -> bool:
        """Delete a chunk, record first. Returns whether there was a record."""
        path = layout.record_path(key)
        with explained(self.uri, "delete"):
            try:
                data = self.backend.read(path)
            except FileNotFoundError:
                return False
            self.backend.delete(path)
            with contextlib.suppress(DamagedChunkError):
                self.backend.delete_folder(parse_record(data, path).object)
        return True

    def has_object(self, record: Record) -> bool:
        """Say whether the files of a record's object are there, without reading them."""
        with explained(self.uri, "list"):
            return has_object(self.backend, record)

    # runs

    def register_run(self, run_id: str, plan: bytes) -> None:
        """Register a run by writing its plan, durable and exclusive; `prune` respects it."""
        with explained(self.uri, "write"):
            runs.register(self.backend, run_id, plan)

    def read_plan(self, run_id: str) -> bytes:
        """Read the plan of a run."""
        with explained(self.uri, "read"):
            return runs.read_plan(self.backend, run_id)

    def runs(self) -> list[str]:
        """List the ids of all registered runs, sorted."""
        with explained(self.uri, "list"):
            return runs.registered(self.backend)

    def forget_run(self, run_id: str) -> None:
        """Unregister a run; its chunks stay until `prune` takes them."""
        with explained(self.uri, "delete"):
            runs.forget(self.backend, run_id)

    def put_run_file(self, run_id: str, name: str, data: bytes) -> None:
        """Write a small file of a run, over an earlier one of that name."""
        with explained(self.uri, "write"):
            self.backend.write(layout.run_file_path(run_id, name), data)

    def read_run_file(self, run_id: str, name: str) -> bytes | None:
        """Read a small file of a run, or None if there is none."""
        with explained(self.uri, "read"):
            try:
                return self.backend.read(layout.run_file_path(run_id, name))
            except FileNotFoundError:
                return None

    def append_events(self, run_id: str, writer: str, events: Sequence[Event]) -> None:
        """Write events as one new file, since object stores cannot append."""
        with explained(self.uri, "write"):
            runs.append_events(self.backend, run_id, writer, events)

    def events(self, run_id: str) -> Iterator[Event]:
        """Read the events of a run in the order of their times."""
        names = self.event_files(run_id)
        files = self._map(lambda name: self.read_event_file(run_id, name), names)
        return iter(sorted(chain.from_iterable(files), key=lambda event: event.time))

    def event_files(self, run_id: str) -> list[str]:
        """List the files of a run's events, one for each writer and flush, by time of the flush."""
        with explained(self.uri, "list"):
            return self.backend.names(layout.events_folder(run_id))

    def read_event_file(self, run_id: str, name: str) -> list[Event]:
        """Read one of ``event_files``, for those who follow a run."""
        with explained(self.uri, "read"):
            return runs.read_events(self.backend, layout.event_path(run_id, name))

    # batches

    def batches(self) -> list[str]:
        """List the names of batches that have looked at a video."""
        with explained(self.uri, "list"):
            return self.backend.names(layout.BATCHES)

    def put_batch_file(self, batch: str, name: str, data: bytes) -> None:
        """Write what is known of one video, over what was known."""
        with explained(self.uri, "write"):
            self.backend.write(layout.batch_file_path(batch, name), data)

    def batch_file(self, batch: str, name: str) -> bytes | None:
        """Read what is known of one video, or None if nothing is."""
        with explained(self.uri, "read"):
            try:
                return self.backend.read(layout.batch_file_path(batch, name))
            except FileNotFoundError:
                return None

    def batch_files(self, batch: str) -> dict[str, bytes]:
        """Read what is known of every video of a batch, by name."""
        with explained(self.uri, "read"):
            names = self.backend.names(layout.batch_folder(batch))
            read = self._map(
                lambda name: self.backend.read(layout.batch_file_path(batch, name)), names
            )
        return dict(zip(names, read, strict=True))

    # cached facts

    def cached(self, kind: str, key: str) -> JsonValue | None:
        """Look up a fact; a damaged or missing one is a miss."""
        with explained(self.uri, "read"):
            try:
                entry = unseal(self.backend.read(layout.cache_path(kind, key)))
            except (FileNotFoundError, ValueError):
                return None
        return entry.get("value") if entry.get("key") == key else None

    def put_cached(self, kind: str, key: str, value: JsonValue) -> None:
        """Keep a fact that was expensive to look up."""
        data = seal({"key": key, "value": value})
        with explained(self.uri, "write"):
            self.backend.write(layout.cache_path(kind, key), data, durable=False)

    # helpers

    def _present_in(self, folder: tuple[str, list[str]]) -> set[str]:
        path, keys = folder
        if len(keys) < _LIST_FROM:
            return {key for key in keys if self._has_record(key)}
        names = set(self.backend.names(path))
        return {key for key in keys if f"{key}.json" in names}

    def _has_record(self, key: str) -> bool:
        try:
            self.backend.info(layout.record_path(key))
        except FileNotFoundError:
            return False
        return True

    def _map(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
        if self.backend.concurrency == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.backend.concurrency) as pool:
            return list(pool.map(function, items))
