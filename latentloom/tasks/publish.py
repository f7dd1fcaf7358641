"""Join the segments and put the video in place, last of all.

The sidecar ``<output>.json`` lists the digest of the new video and of the one it replaces, and is renamed in
before the video. So a video is ours exactly if its sidecar lists it, whenever a run was killed.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentloom.errors import MediaError, ResourceError, UsageError
from latentloom.media.join import join_segments
from latentloom.schemas.base import digest
from latentloom.schemas.media import EncodeSettings, JoinReport
from latentloom.schemas.plan import Plan
from latentloom.storage.leases import lease
from latentloom.storage.store import Store
from latentloom.tasks.chunk import open_source, read_chunk
from latentloom.tasks.published import check_output, file_digest, sidecar_path
from latentloom.tasks.stop import stop_requested

_WRONG_PLACE = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""Errors that another output.uri avoids."""


def publish(store: Store, plan: Plan, *, run_id: str, output: str, overwrite: bool) -> JoinReport:
    """Join the segments of a plan into its video.

    Args:
        store: Where the segments lie.
        plan: The plan; every segment must have a record.
        run_id: Written into the sidecar.
        output: Path of the video.
        overwrite: Whether a video that is not ours may be replaced.

    Raises:
        UsageError: If the path holds something that is not ours, or cannot be written.
        MissingChunkError: If a segment has vanished.
        ResourceError: If the disk is full.
    """
    path = Path(output)
    with lease(store, f"output-{digest(str(path.resolve()))[:40]}", stop=stop_requested):
        check_output(output, source=plan.facts.source.path, overwrite=overwrite)
        with _explained(output):
            path.parent.mkdir(parents=True, exist_ok=True)
        with _drafts(store, path) as (temporary, draft), _explained(output):
            report = join(store, plan, temporary)
            _put_in_place(plan, run_id, temporary, draft, path)
    return report


def join(store: Store, plan: Plan, destination: Path) -> JoinReport:
    """Join the segments of a plan into a file, and check its frames."""
    stage = plan.by_name["encode_video"]
    output = plan.recipe.output
    assert output is not None

    def segments() -> Iterator[bytes]:
        for index in range(len(stage.chunks)):
            yield read_chunk(store, stage, index).tobytes()

    report = join_segments(
        segments(),
        destination,
        source=Path(open_source(plan).path),
        info=plan.facts.source.info.faster(plan.rate),
        first_frame=plan.start * plan.rate,
        last_frame=plan.stop * plan.rate,
        audio=output.audio,
        settings=EncodeSettings.model_validate(stage.variants[0].fields["settings"]),
        metadata=_metadata(plan),
    )
    wanted = plan.num_frames * plan.rate
    if report.num_frames != wanted:
        raise MediaError(
            f"the joined video has {report.num_frames} frames, the plan {wanted};"
            " nothing was published"
        )
    return report


def _metadata(plan: Plan) -> dict[str, str]:
    """Return what goes into the file: only what keys contain, so that bytes repeat."""
    facts = {
        "plan": plan.digest,
        "stages": {
            stage.name: {
                "variants": [variant.fields for variant in stage.variants],
                "timed": list(stage.timed),
            }
            for stage in plan.stages
            if stage.unit != "source"
        },
    }
    return {"comment": "latentloom " + json.dumps(facts, sort_keys=True, separators=(",", ":"))}


@contextmanager
def _drafts(store: Store, path: Path) -> Iterator[tuple[Path, Path]]:
    """Name a temporary video and sidecar, removed in the end; what a killed run left is removed first.

    Names hold the store's, since runs of two stores share no lease, and a token, since a lease can be lost.
    """
    prefix = f".{path.name}.{digest(store.uri)[:8]}."
    for left in path.parent.glob(f"{glob.escape(prefix)}*.partial*"):
        left.unlink(missing_ok=True)
    token = secrets.token_hex(4)
    drafts = (
        path.with_name(f"{prefix}{token}.partial{path.suffix}"),
        path.with_name(f"{prefix}{token}.partial.json"),
    )
    try:
        yield drafts
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextmanager
def _explained(output: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        text = f"cannot write {output}: {error.strerror or error}"
        if error.errno in _WRONG_PLACE:
            raise UsageError(f"{text}; choose another output.uri") from error
        raise ResourceError(f"{text}; finished chunks are kept") from error


def _put_in_place(plan: Plan, run_id: str, temporary: Path, draft: Path, path: Path) -> None:
    sidecar = {
        "plan": plan.digest,
        "run": run_id,
        "sha256": file_digest(temporary),
        "replaces": file_digest(path) if path.exists() else None,
        "frames": plan.num_frames * plan.rate,
        "source": {"uri": plan.facts.source.uri, "sha256": plan.facts.source.digest},
        "recipe": plan.recipe.model_dump(mode="json", exclude_defaults=True) | {"version": 1},
        "models": {name: model.digest for name, model in plan.facts.models.items()},
    }
    draft.write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")
    _sync(temporary)
    _sync(draft)
    draft.replace(sidecar_path(path))
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
