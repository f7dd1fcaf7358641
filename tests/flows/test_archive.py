"""Scans: which videos there are, where they go, what is known of them. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latentloom.errors import LatentloomError, PolicyError, RecipeError, UsageError
from latentloom.flows.archive import Scan, Video, output_version, read_records, scan, write_record
from latentloom.schemas.yaml import parse_yaml, plain
from latentloom.storage.store import Store
from tests.runs import make_recipe_data
from tests.yaml import write_yaml

BATCH = """\
version: 1
name: night
recipe: recipe.yaml
inputs: {include: ["in/**/*.mp4"]}
output: "out/{relpath}.mp4"
"""


class Shelf:
    """A folder with videos that nobody opens, a recipe and a batch file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(str(folder / "store"))
        for name in ("one.mp4", "a/two.mp4", "a/b/three [x].mp4", "a/notes.txt"):
            path = folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        write_yaml(folder / "recipe.yaml", make_recipe_data(Path("in/one.mp4"), Path("x.mp4")))

    def scan(self, text: str = BATCH) -> Scan:
        (self.folder / "batch.yaml").write_text(text)
        return scan(self.store, self.folder / "batch.yaml", roots=[self.folder])

    def finish(self, video: Video) -> None:
        output = Path(video.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("edited")
        self.write(video, state="done", output_version=output_version(video.output))

    def write(self, video: Video, **changes: Any) -> None:
        write_record(self.store, "night", video.record.model_copy(update=changes))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def names(videos: list[Video]) -> list[str]:
    return [video.source.uri.rpartition("/")[2] for video in videos]


def test_folder_in_is_the_same_folder_out(shelf: Shelf) -> None:
    found = shelf.scan().todo
    assert [str(Path(video.output).relative_to(shelf.folder)) for video in found] == [
        "out/a/b/three [x].mp4",
        "out/a/two.mp4",
        "out/one.mp4",
    ]


def test_finished_videos_are_done_until_they_change(shelf: Shelf) -> None:
    for video in shelf.scan().todo:
        shelf.finish(video)
    assert names(shelf.scan().done) == ["three [x].mp4", "two.mp4", "one.mp4"]

    (shelf.folder / "in" / "one.mp4").write_text("another")
    assert names(shelf.scan().todo) == ["one.mp4"]
    (shelf.folder / "out" / "a" / "two.mp4").unlink()
    assert names(shelf.scan().todo) == ["two.mp4", "one.mp4"]
    assert len(shelf.scan(BATCH + "overrides: [stages.fuse.alpha=0.1]\n").todo) == 3


def test_failing_video_is_left_alone_after_max_attempts_until_it_changes(shelf: Shelf) -> None:
    text = BATCH + "max_attempts: 2\n"
    bad = shelf.scan(text).todo[-1]
    shelf.write(bad, state="failed", attempts=1)
    assert len(shelf.scan(text).todo) == 3
    shelf.write(bad, state="failed", attempts=2)
    assert names(shelf.scan(text).quarantined) == ["one.mp4"]
    (shelf.folder / "in" / "one.mp4").write_text("mended")
    assert shelf.scan(text).quarantined == []
    assert {record.attempts for record in read_records(shelf.store, "night").values()} == {2}


def test_excluded_videos_are_left_out(shelf: Shelf) -> None:
    text = BATCH.replace('**/*.mp4"]', '**/*.mp4"], exclude: ["in/a/**"]')
    assert names(shelf.scan(text).todo) == ["one.mp4"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "uri,stages.fuse.alpha\nin/one.mp4,0.25\nin/a/two.mp4,\n"),
        (
            "list.jsonl",
            '{"uri": "in/one.mp4", "stages.fuse.alpha": 0.25}\n{"uri": "in/a/two.mp4"}\n',
        ),
    ],
)
def test_manifest_overrides_one_video(shelf: Shelf, name: str, text: str) -> None:
    (shelf.folder / name).write_text(text)
    batch = BATCH.replace('include: ["in/**/*.mp4"]', f"manifest: {name}")
    found = {names([video])[0]: video for video in shelf.scan(batch).todo}
    assert set(found) == {"one.mp4", "two.mp4"}
    assert found["one.mp4"].overrides == ("stages.fuse.alpha=0.25",)
    assert found["one.mp4"].recipe != found["two.mp4"].recipe


def test_short_ones_first(shelf: Shelf) -> None:
    (shelf.folder / "in" / "one.mp4").write_text("x" * 99)
    assert names(shelf.scan(BATCH + "order: short_first\n").todo)[-1] == "one.mp4"


def test_inline_recipe_is_checked_like_a_file(shelf: Shelf) -> None:
    data = plain(parse_yaml(BATCH, name="batch"))
    data["recipe"] = make_recipe_data(Path("in/one.mp4"), Path("x.mp4"))
    write_yaml(shelf.folder / "inline.yaml", data)
    assert len(scan(shelf.store, shelf.folder / "inline.yaml", roots=[shelf.folder]).todo) == 3
    data["recipe"]["stages"] = [{"op": "encod"}]
    write_yaml(shelf.folder / "inline.yaml", data)
    with pytest.raises(RecipeError, match="did you mean encode"):
        scan(shelf.store, shelf.folder / "inline.yaml", roots=[shelf.folder])


Change = Callable[[str], str]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda t: t.replace("mp4", "mkv"), UsageError, "match no video"),
        (lambda t: t.replace("{relpath}", "same"), UsageError, "have one output"),
        (lambda t: t.replace("out/", "in/new/"), UsageError, "inside the input tree"),
        (lambda t: t.replace("{relpath}", "{path}"), RecipeError, "only {name}, {relpath}, {stem}"),
        (lambda t: t.replace("out/", "/else/"), PolicyError, "outside"),
        (lambda t: t.replace('"in/', '"/etc/'), UsageError, "match no video"),
        (lambda t: t + "overrides: [stages.fuse.alpha=7]\n", RecipeError, "stages[2].alpha"),
        (lambda t: t.replace("recipe.yaml", "none.yaml"), RecipeError, "none.yaml"),
        (lambda t: t + "max_paralel: 2\n", RecipeError, "did you mean max_parallel"),
        (lambda t: t.replace('["in/**/*.mp4"]', "[ftp://x/*]"), PolicyError, "not allowed"),
    ],
)
def test_bad_batch_is_one_clear_error_before_anything_runs(
    shelf: Shelf, change: Change, kind: type[LatentloomError], message: str
) -> None:
    with pytest.raises(kind) as caught:
        shelf.scan(change(BATCH))
    assert message in str(caught.value)
    assert shelf.store.batches() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uri,stages.fuse.alfa\nin/one.mp4,1\n", "alfa"),
        ("name\nin/one.mp4\n", "no uri"),
        ("uri,seed\nin/one.mp4\n", "not as many values"),
        ("uri\nin/none.mp4\n", "in/none.mp4 is not there"),
    ],
)
def test_bad_manifest_is_one_clear_error(shelf: Shelf, text: str, message: str) -> None:
    (shelf.folder / "list.csv").write_text(text)
    with pytest.raises((RecipeError, UsageError), match=message):
        shelf.scan(BATCH.replace('include: ["in/**/*.mp4"]', "manifest: list.csv"))
