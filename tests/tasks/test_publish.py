"""Publishing: what is not ours stays, what a killed run left goes, and errors say what to do."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import pytest

from latentloom.errors import ResourceError, UsageError
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks import publish as publish_module
from latentloom.tasks.publish import publish
from latentloom.tasks.published import check_output, file_digest, is_published, read_sidecar
from tests.runs import compile_small, make_clip, run_here

PROMPTS = [{"target": "first text", "end": 1}, {"target": "second text", "start": 1}]


@dataclass(frozen=True)
class Finished:
    store: Store
    plan: Plan

    def publish(self, output: Path, *, overwrite: bool = False) -> None:
        publish(self.store, self.plan, run_id="r", output=str(output), overwrite=overwrite)

    def check(self, output: Path, *, overwrite: bool = False) -> None:
        check_output(str(output), source=self.plan.facts.source.path, overwrite=overwrite)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run of which every segment is in the store."""
    folder = tmp_path_factory.mktemp("run")
    store = Store.open(str(folder / "store"))
    clip = make_clip(folder / "clip.mp4", 16)
    redo = [{"frames": [8, 16], "overrides": ["stages.fuse.guidance_scale=3.5"]}]
    plan = compile_small(store, clip, folder / "first.mp4", prompts=PROMPTS, redo=redo)
    run_here(store, plan)
    return Finished(store, plan)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_video_and_sidecar_are_all_that_is_left(finished: Finished, tmp_path: Path) -> None:
    output = tmp_path / "new" / "folder" / "video.mp4"
    finished.publish(output)
    assert names(output.parent) == ["video.mp4", "video.mp4.json"]
    assert is_published(finished.plan, str(output))
    assert read_sidecar(str(output))["sha256"] == file_digest(output)


def test_metadata_holds_every_variant_and_every_text(finished: Finished, tmp_path: Path) -> None:
    finished.publish(tmp_path / "video.mp4")
    with av.open(str(tmp_path / "video.mp4")) as container:
        comment = container.metadata["comment"]
    fuse = json.loads(comment.removeprefix("latentloom "))["stages"]["fuse"]
    scales = [variant["params"]["guidance_scale"] for variant in fuse["variants"]]
    texts = {values["sources.0"]["prompt"] for values in fuse["timed"]}
    assert scales == [2.0, 3.5]
    assert texts == {"first text", "second text"}


def test_drafts_of_a_killed_run_are_removed(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def spare_drafts(path: Path, *, missing_ok: bool = False) -> None:
        if "partial" not in path.name:
            unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", spare_drafts)
        patched.setattr(publish_module, "file_digest", _fail(errno.EIO))
        with pytest.raises(ResourceError, match="finished chunks are kept"):
            finished.publish(tmp_path / "[a] video.mp4")
    assert [name for name in names(tmp_path) if "partial" in name]
    finished.publish(tmp_path / "[a] video.mp4")
    assert names(tmp_path) == ["[a] video.mp4", "[a] video.mp4.json"]


def test_nothing_is_left_by_an_error(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_module, "_sync", _fail(errno.ENOSPC))
    with pytest.raises(ResourceError, match="No space left"):
        finished.publish(tmp_path / "video.mp4")
    assert names(tmp_path) == []


def test_folder_that_cannot_be_made_is_a_usage_error(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "mkdir", _fail(errno.EACCES))
    with pytest.raises(UsageError, match="Permission denied; choose another output"):
        finished.publish(tmp_path / "new" / "video.mp4")


def test_places_that_cannot_be_written_are_refused_before_anything_runs(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "video.mp4.json").mkdir()
    for place in ("file/video.mp4", "file/deep/video.mp4", "video.mp4", f"{'x' * 230}.mp4", "."):
        with pytest.raises(UsageError, match="choose another output"):
            finished.check(tmp_path / place, overwrite=True)
    finished.check(tmp_path / "new" / "folder" / "video.mp4")
    assert names(tmp_path) == ["file", "video.mp4.json"]
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UsageError, match="no permission to write into"):
        finished.check(tmp_path / "new" / "video.mp4")


@pytest.mark.parametrize("content", ['{"name": "notes"}', "[1]", "not JSON", ""])
def test_foreign_file_beside_the_video_stays(
    finished: Finished, tmp_path: Path, content: str
) -> None:
    beside = tmp_path / "video.mp4.json"
    beside.write_text(content)
    with pytest.raises(UsageError, match=r"video\.mp4\.json exists and is not ours"):
        finished.publish(tmp_path / "video.mp4")
    assert beside.read_text() == content
    finished.publish(tmp_path / "video.mp4", overwrite=True)
    assert is_published(finished.plan, str(tmp_path / "video.mp4"))


def test_our_own_video_is_replaced_and_a_changed_one_is_not(
    finished: Finished, tmp_path: Path
) -> None:
    output = tmp_path / "video.mp4"
    finished.publish(output)
    finished.publish(output)
    assert read_sidecar(str(output))["replaces"] == file_digest(output)
    output.write_bytes(b"somebody's own")
    with pytest.raises(UsageError, match="exists and is not ours"):
        finished.publish(output)
    assert output.read_bytes() == b"somebody's own"


def _fail(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail
