"""Scan an archive: which videos a batch has, where each goes, and what there is to do.

One small record per video in the store says what was seen of it and how the last try ended. A video whose
source, recipe and output are as they were is done without being opened.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from latentloom.errors import RecipeError, UsageError
from latentloom.flows.keys import OP_VERSIONS
from latentloom.flows.output import fill_in
from latentloom.flows.resolve import resolve_machine, resolve_maps, resolve_models
from latentloom.schemas.base import digest
from latentloom.schemas.batch import Batch, VideoRecord, VideoState
from latentloom.schemas.load import build_recipe, confined, load_batch
from latentloom.schemas.recipe import Recipe
from latentloom.schemas.yaml import plain, read_yaml
from latentloom.storage.listing import FoundFile, find_file, find_files, matches
from latentloom.storage.store import Store

_URI = "uri"
_SHOWN = 5


@dataclass(frozen=True)
class Template:
    """The recipe of a batch, before the paths of a video are filled in."""

    document: Mapping[str, Any]
    file: Path
    """Its paths are relative to this file's folder."""
    roots: tuple[Path, ...] = ()
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def recipe(self, source: str, output: str, overrides: Sequence[str]) -> Recipe:
        """Build the recipe of one video.

        Raises:
            RecipeError: With every fault.
        """
        return build_recipe(
            self.document,
            self.file,
            overrides,
            roots=self.roots,
            defaults=self.defaults,
            places={"source.uri": source, "output.uri": output},
        )


@dataclass(frozen=True)
class Video:
    """One video of a batch."""

    source: FoundFile
    output: str
    overrides: tuple[str, ...]
    recipe: str
    """Digest of its recipe and what that depends on."""
    record: VideoRecord
    """What is known of it; attempts on another source or recipe do not count."""

    @property
    def name(self) -> str:
        """Name of its record."""
        return record_name(self.source.uri, self.output)


@dataclass
class Scan:
    """What a batch has to do."""

    batch: Batch
    template: Template
    todo: list[Video] = field(default_factory=list)
    done: list[Video] = field(default_factory=list)
    quarantined: list[Video] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return the number of videos."""
        return len(self.todo) + len(self.done) + len(self.quarantined)


def scan(
    store: Store,
    path: Path,
    *,
    roots: Sequence[Path] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Scan:
    """Read a batch file, and look at every video that it stands for.

    Args:
        store: Where records lie.
        path: The batch file.
        roots: More folders that it may point into.
        defaults: Recipe fields for those that neither the recipe nor its overrides set.

    Raises:
        RecipeError: If the batch or its recipe is faulty; nothing has been begun.
        UsageError: If no video is found, or outputs collide or would be inputs of the next scan.
        PolicyError: If the batch points outside the folders it is confined to.
    """
    batch, document = load_batch(path)
    template = _template(batch, document, path, roots, defaults or {})
    found = list(_find_inputs(batch, path, roots))
    if not found:
        raise UsageError(f"{path}: inputs match no video: {', '.join(batch.inputs.include)}")
    outputs = [_output(batch, path, source, roots) for source, _ in found]
    _check_outputs(batch, path, [source for source, _ in found], outputs)
    known = read_records(store, batch.name)
    digests = _Digests(store, template)
    result = Scan(batch, template)
    for (source, overrides), output in zip(found, outputs, strict=True):
        texts = (*batch.overrides, *overrides)
        recipe = digests.of(source.uri, output, texts)
        record = known.get(record_name(source.uri, output))
        _sort_in(
            result, Video(source, output, texts, recipe, current(record, source, output, recipe))
        )
    _order(result)
    return result


def read_records(store: Store, batch: str) -> dict[str, VideoRecord]:
    """Read what is known of the videos of a batch, by name of the record."""
    return {
        name.removesuffix(".json"): VideoRecord.model_validate_json(data)
        for name, data in store.batch_files(batch).items()
    }


def read_record(store: Store, batch: str, video: Video) -> VideoRecord | None:
    """Read what is known of one video by now."""
    data = store.batch_file(batch, f"{video.name}.json")
    return None if data is None else VideoRecord.model_validate_json(data)


def write_record(store: Store, batch: str, record: VideoRecord) -> None:
    """Write what is known of a video."""
    name = f"{record_name(record.uri, record.output)}.json"
    store.put_batch_file(batch, name, record.model_dump_json(exclude_defaults=True).encode())


def record_name(uri: str, output: str) -> str:
    """Name the record of a video: another output is another video."""
    return digest([uri, output])[:40]


def current(record: VideoRecord | None, source: FoundFile, output: str, recipe: str) -> VideoRecord:
    """Return what is known of a video, begun anew if its source or recipe is another."""
    if record is None or (record.source_version, record.recipe) != (source.version, recipe):
        return VideoRecord(
            uri=source.uri, output=output, source_version=source.version, recipe=recipe
        )
    return record


def output_version(output: str) -> str:
    """Say which version of a published video lies there; nothing if none does."""
    path = Path(output)
    return find_file(output, folder=path.parent).version if path.is_file() else ""


def _template(
    batch: Batch,
    document: Any,
    path: Path,
    roots: Sequence[Path],
    defaults: Mapping[str, Mapping[str, Any]],
) -> Template:
    if isinstance(batch.recipe, str):
        file = confined(path.parent / batch.recipe, "recipe", _folders(path, roots))
        inner = read_yaml(file)
        if not isinstance(inner, Mapping):
            raise RecipeError(f"{file}: a recipe is a mapping that begins with version: 1")
    else:
        file, inner = path, document["recipe"]
    return Template(plain(inner), file, tuple(roots), defaults)


def _folders(path: Path, roots: Sequence[Path]) -> list[Path]:
    return [path.resolve().parent, Path.cwd(), *roots]


def _find_inputs(
    batch: Batch, path: Path, roots: Sequence[Path]
) -> Iterator[tuple[FoundFile, tuple[str, ...]]]:
    """Yield each video once, with the overrides of its row in the manifest."""
    folder = path.resolve().parent
    seen: set[str] = set()
    for source, overrides in _listed(batch, folder):
        if source.uri in seen or any(
            matches(pattern, source.uri, folder=folder) for pattern in batch.inputs.exclude
        ):
            continue
        if "://" not in source.uri:
            confined(Path(source.uri), "inputs", _folders(path, roots))
        seen.add(source.uri)
        yield source, overrides


def _listed(batch: Batch, folder: Path) -> Iterator[tuple[FoundFile, tuple[str, ...]]]:
    if batch.inputs.manifest is not None:
        file = folder / batch.inputs.manifest
        for number, row in _rows(file):
            if not row.get(_URI):
                raise RecipeError(f"{file}:{number}: no {_URI}; every row names its video")
            fields = {key: value for key, value in row.items() if key != _URI and value != ""}
            overrides = tuple(f"{key}={_text(value)}" for key, value in sorted(fields.items()))
            yield find_file(str(row[_URI]), folder=folder), overrides
    for pattern in batch.inputs.include:
        yield from ((source, ()) for source in find_files(pattern, folder=folder))


def _rows(file: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Read a manifest: JSONL by its suffix, else CSV; yields the line of each row."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"inputs.manifest: {file} cannot be read: {error}") from error
    if file.suffix in (".jsonl", ".ndjson"):
        yield from _json_rows(file, text)
        return
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise RecipeError(f"{file}:{reader.line_num}: not as many values as columns")
            yield reader.line_num, row
    except csv.Error as error:
        raise RecipeError(f"{file}:{reader.line_num}: no CSV: {error}") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecipeError(f"{file}:{number}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise RecipeError(f"{file}:{number}: a row is an object with {_URI} in it")
        yield number, row


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _output(batch: Batch, path: Path, source: FoundFile, roots: Sequence[Path]) -> str:
    known = {
        "relpath": str(source.relative.with_suffix("")),
        "stem": source.relative.stem,
        "name": batch.name,
    }
    filled = fill_in(str(path.resolve().parent / batch.output), known, nested=("relpath",))
    return str(confined(Path(filled), "output", _folders(path, roots)))


def _check_outputs(
    batch: Batch, path: Path, sources: Sequence[FoundFile], outputs: Sequence[str]
) -> None:
    """Refuse two videos with one output, and outputs that are inputs, now or at the next scan."""
    folder = path.resolve().parent
    first: dict[str, str] = {}
    uris = {source.uri for source in sources}
    for source, output in zip(sources, outputs, strict=True):
        if output in first:
            raise UsageError(
                f"{path}: {first[output]} and {source.uri} have one output, {output};"
                " use {relpath} in output"
            )
        first[output] = source.uri
        inside = any(
            matches(pattern, output, folder=folder) for pattern in batch.inputs.include
        ) and not any(matches(pattern, output, folder=folder) for pattern in batch.inputs.exclude)
        if output in uris or inside:
            raise UsageError(
                f"{path}: output {output} lies inside the input tree and would be an input of the"
                " next scan; choose another folder, or exclude it"
            )


class _Digests:
    """Digests of recipes, each distinct set of overrides validated and looked up once."""

    def __init__(self, store: Store, template: Template) -> None:
        self.store, self.template = store, template
        self._known: dict[tuple[str, ...], str] = {}

    def of(self, source: str, output: str, overrides: tuple[str, ...]) -> str:
        """Return the digest of a video's recipe, models, maps and what it runs on; paths do not count."""
        if overrides not in self._known:
            recipe = self.template.recipe(source, output, overrides)
            data = recipe.model_dump(mode="json", exclude={"source": {"uri"}, "output": {"uri"}})
            models = resolve_models(recipe, self.store)
            maps = resolve_maps(recipe, self.store)
            machine = resolve_machine(recipe, self.store)
            self._known[overrides] = digest(
                {
                    "recipe": data,
                    "suffix": PurePosixPath(output).suffix,
                    "ops": OP_VERSIONS,
                    "models": {name: facts.digest for name, facts in models.items()},
                    "maps": {name: facts.digest for name, facts in maps.items()},
                    "machine": [machine.device, machine.torch, machine.av],
                }
            )
        return self._known[overrides]


def _sort_in(result: Scan, video: Video) -> None:
    record = video.record
    if record.state == "done" and record.output_version == output_version(video.output):
        result.done.append(video)
    elif record.state == "quarantined" or record.attempts >= result.batch.max_attempts:
        result.quarantined.append(video)
    else:
        result.todo.append(video)


def _order(result: Scan) -> None:
    orders = {
        "name": lambda video: video.source.uri,
        "short_first": lambda video: (video.source.size, video.source.uri),
        "newest_first": lambda video: (-video.source.modified, video.source.uri),
    }
    result.todo.sort(key=orders[result.batch.order])


def describe(videos: Iterable[Video]) -> list[str]:
    """Return a line for each of the first few videos, and how many more there are."""
    listed = list(videos)
    lines = [f"{video.source.uri} -> {video.output}" for video in listed[:_SHOWN]]
    return lines + ([f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else [])


def batch_name(store: Store, text: str) -> str | None:
    """Return the name of the batch that a file or a name stands for; nothing if it is neither."""
    if Path(text).suffix in (".yaml", ".yml"):
        return load_batch(Path(text))[0].name
    return text if text in store.batches() else None


def describe_batch(store: Store, batch: str) -> dict[str, Any]:
    """Count the videos of a batch by state, as its records tell; ``running`` ones may have died since."""
    records = list(read_records(store, batch).values())
    states = Counter(record.state for record in records)
    outputs = [Path(record.output) for record in records if record.state == "done"]
    failures = [record for record in records if record.state in ("failed", "quarantined")]
    return {
        "batch": batch,
        **{state: states[state] for state in get_args(VideoState)},
        "seconds": round(sum(record.seconds for record in records), 3),
        "bytes": sum(path.stat().st_size for path in outputs if path.is_file()),
        "failures": [
            {"uri": r.uri, "state": r.state, "error": r.error, "attempts": r.attempts}
            for r in failures
        ],
        "warnings": dict(Counter(warning for record in records for warning in record.warnings)),
    }
