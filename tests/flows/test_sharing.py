"""Who may take a video of a batch that several machines share. No server: leases and records decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentloom.errors import UsageError
from latentloom.flows.archive import Video, output_version, scan, write_record
from latentloom.flows.sharing import Share, invite, leading
from latentloom.schemas.batch import VideoRecord
from latentloom.storage.leases import Lease, lease
from latentloom.storage.store import Store
from tests.runs import make_recipe_data
from tests.yaml import write_yaml


class Shared:
    """A batch of one video, and two machines on it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(str(folder / "store"))
        (folder / "in").mkdir()
        (folder / "in" / "one.mp4").write_text("never opened")
        write_yaml(folder / "recipe.yaml", make_recipe_data(Path("in/one.mp4"), Path("x.mp4")))
        batch = {
            "version": 1,
            "name": "night",
            "recipe": "recipe.yaml",
            "inputs": {"include": ["in/*.mp4"]},
            "output": "out/{stem}.mp4",
        }
        self.file = folder / "batch.yaml"
        write_yaml(self.file, batch)
        self.leader = Share(self.store, "night", "scan 2", leads=True)
        self.helper = Share(self.store, "night", "scan 2", leads=False)

    @property
    def video(self) -> Video:
        found = scan(self.store, self.file, roots=[self.file.parent])
        return [*found.todo, *found.done, *found.quarantined][0]

    def end(self, video: Video, **changes: Any) -> None:
        write_record(self.store, "night", video.record.model_copy(update=changes))


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path)


def taken(share: Share, video: Video) -> Lease:
    claimed = share.claim(video)
    assert isinstance(claimed, Lease)
    return claimed


def test_video_is_one_machines_at_a_time(shared: Shared) -> None:
    video = shared.video
    with taken(shared.leader, video):
        assert shared.helper.claim(video) is None
    taken(shared.helper, video).release()


def test_video_that_another_machine_ended_is_not_taken_again(shared: Shared) -> None:
    video = shared.video
    with taken(shared.helper, video):
        Path(video.output).parent.mkdir()
        Path(video.output).write_text("edited")
        version = output_version(video.output)
        shared.end(video, state="done", output_version=version, scan="scan 1")
    claimed = shared.leader.claim(video)
    assert isinstance(claimed, VideoRecord)
    assert claimed.state == "done"


@pytest.mark.parametrize("state", ["failed", "quarantined"])
def test_video_that_failed_is_tried_again_by_another_scan_only(shared: Shared, state: str) -> None:
    video = shared.video
    shared.end(video, state=state, scan="scan 2", attempts=1)
    assert isinstance(shared.helper.claim(video), VideoRecord)
    shared.end(video, state=state, scan="scan 1", attempts=1)
    taken(shared.helper, video).release()


def test_video_of_a_dead_machine_is_taken_over(shared: Shared) -> None:
    video = shared.video
    shared.end(video, state="running", scan="scan 2", pid=1)
    taken(shared.helper, video).release()


def test_video_whose_output_has_gone_is_taken_though_it_was_done(shared: Shared) -> None:
    shared.end(shared.video, state="done", output_version="gone")
    taken(shared.leader, shared.video).release()


def test_helper_begins_nothing_once_the_leader_has_ended(shared: Shared) -> None:
    with lease(shared.store, leading("night")):
        assert shared.helper.goes_on()
    assert not shared.helper.goes_on()
    assert shared.leader.goes_on()


def test_machines_without_a_deployment_are_refused() -> None:
    invite(0, "scan")
    with pytest.raises(UsageError, match="latentloom submit"):
        invite(1, "scan")
