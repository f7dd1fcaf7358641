"""A run that is told to stop inside a stage: what it shows, and that going on takes no step twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from latentloom.errors import ResourceError, UsageError
from latentloom.flows import preview
from latentloom.flows.execute import execute
from latentloom.flows.inspect import kept_keys
from latentloom.flows.launch import check_disk_until
from latentloom.flows.preview import preview_path
from latentloom.flows.runs import register
from latentloom.flows.until import find_need_until, find_standing, find_stop, stopped_bytes
from latentloom.models.schedulers import Sampler
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.storage.local import LocalBackend
from latentloom.storage.maintenance import prune, usage, verify
from latentloom.storage.store import Store
from latentloom.tasks.preview import sample_estimates
from tests.runs import STAGES, compile_small, make_clip, run_here
from tests.storage.faults import FailFrom

NUM_STEPS, TAU, EVERY = 8, 4, 3
FUSE = STAGES[2] | {"tau": TAU, "checkpoint_every": EVERY}
INVERT = STAGES[1] | {"num_inference_steps": NUM_STEPS}
FUSED = [STAGES[0], INVERT, FUSE, STAGES[3]]
SMOOTHED = [STAGES[0], INVERT | {"strength": 0.5}, {"op": "smooth"}, STAGES[3]]
NUM_FRAMES, NUM_WINDOWS = 14, 2


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", NUM_FRAMES)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def count_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that tells the DDIM steps, of any source, since it was last asked."""
    taken, step = [0], Sampler.step

    def counted(self: Sampler, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        taken[0] += 1
        return step(self, eps, i, z)

    def since() -> int:
        found, taken[0] = taken[0], 0
        return found

    monkeypatch.setattr(Sampler, "step", counted)
    return since


def stop_at(store: Store, plan: Plan, until: str, *, preview: bool = True) -> RunState:
    return execute(
        store, plan, register(store, plan), until=find_stop(plan, until), preview=preview
    )


def size_of(state: RunState) -> tuple[int, int]:
    assert state.preview is not None
    with Image.open(state.preview) as picture:
        return picture.size


def undisturbed(clip: Path, folder: Path, **changes: Any) -> bytes:
    """Return the video of the same recipe without a stop."""
    other = Store.open(str(folder / "other"))
    run_here(other, compile_small(other, clip, folder / "other.mp4", **changes))
    return (folder / "other.mp4").read_bytes()


@pytest.mark.parametrize(
    ("stages", "step", "sources"), [(FUSED, 2, 2), (FUSED, 5, 2), (SMOOTHED, 6, 1)]
)
def test_going_on_takes_no_step_twice_and_ends_in_the_same_bytes(
    clip: Path,
    store: Store,
    tmp_path: Path,
    count_steps: Callable[[], int],
    stages: list[dict[str, Any]],
    step: int,
    sources: int,
) -> None:
    expected, in_all = undisturbed(clip, tmp_path, stages=stages), count_steps()
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=stages)
    stopped = stop_at(store, plan, str(step))
    assert stopped.state == "previewed"
    assert not (tmp_path / "edited.mp4").exists()
    before = count_steps()
    assert before == NUM_WINDOWS * sources * (step - (NUM_STEPS // 2 if stages is SMOOTHED else 0))
    ended = run_here(store, plan)
    assert (ended.run, ended.state, ended.until) == (stopped.run, "finished", None)
    assert before + count_steps() == in_all
    assert (tmp_path / "edited.mp4").read_bytes() == expected
    assert verify(store).damages == []
    assert not find_standing(store, plan.stages[3], 1)


MEETING = {"size": 8, "overlap": 2, "mode": "co_denoise"}


@pytest.mark.parametrize(("stages", "step"), [(FUSED, 2), (FUSED, 5), (SMOOTHED, 5)])
def test_windows_that_meet_stop_after_the_same_step_and_go_on(
    clip: Path,
    store: Store,
    tmp_path: Path,
    count_steps: Callable[[], int],
    stages: list[dict[str, Any]],
    step: int,
) -> None:
    expected = undisturbed(clip, tmp_path, stages=stages, windows=MEETING)
    in_all = count_steps()
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=stages, windows=MEETING)
    assert stop_at(store, plan, str(step)).state == "previewed"
    before = count_steps()
    stage = plan.stages[3]
    assert store.present(stage.keys_at(step)) == set(stage.keys_at(step))
    assert not store.present(stage.keys_at(step + 1))
    assert stop_at(store, plan, str(step)).state == "previewed"
    assert count_steps() == 0
    assert run_here(store, plan).state == "finished"
    assert before + count_steps() == in_all
    assert (tmp_path / "edited.mp4").read_bytes() == expected
    assert not any(store.present(stage.keys_at(k)) for k in stage.steps[:-1])


@pytest.mark.parametrize("step", [3, 4, 7])
def test_estimate_of_windows_that_meet_is_that_of_one_window_alone(
    store: Store, tmp_path: Path, step: int
) -> None:
    clip, pictures = make_clip(tmp_path / "short.mp4", 8), []
    for mode in ("independent", "co_denoise"):
        windows = MEETING | {"mode": mode}
        plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED, windows=windows)
        stop_at(store, plan, str(step))
        (sample,) = sample_estimates(store, plan, "fuse", [3])
        assert sample.step == step
        assert sample.picture is not None
        pictures.append(sample.picture.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 5


def test_stopping_again_takes_the_steps_between_and_stopping_earlier_none(
    clip: Path, store: Store, tmp_path: Path, count_steps: Callable[[], int]
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    stop_at(store, plan, "2")
    count_steps()
    stop_at(store, plan, "5", preview=False)
    assert count_steps() == NUM_WINDOWS * 2 * 3
    for until in ("5", "3", "fuse:1"):
        assert stop_at(store, plan, until).state == "previewed"
        assert count_steps() == 0
    steps = [sample.step for sample in sample_estimates(store, plan, "fuse", [0, 13])]
    assert steps == [5, 5]


def test_estimate_is_what_the_last_step_predicted(clip: Path, store: Store, tmp_path: Path) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    with pytest.MonkeyPatch.context() as patch:
        step = Sampler.step

        def noted(self: Sampler, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
            alpha_bar = self.alpha_bar(i)
            predicted = (z - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
            seen[i, len(seen)] = predicted
            return step(self, eps, i, z)

        patch.setattr(Sampler, "step", noted)
        stop_at(store, plan, "5")
    # At the first window's step 4 = tau both sources, image and video, predicted; 0.7 is the video's.
    image, video = (seen[4, place] for place in (8, 9))
    sample = next(iter(sample_estimates(store, plan, "fuse", [2])))
    from latentloom.models.folders import resolve_folder
    from latentloom.models.standin import load_vae
    from latentloom.tasks.tensors import frames_to_array

    vae = load_vae(resolve_folder("embedded:standin/image") / "vae", "cpu")
    expected = frames_to_array(vae.decode_latents(0.3 * image[2:3] + 0.7 * video[2:3]), "uint8")[0]
    assert sample.picture is not None
    assert np.abs(sample.picture.astype(int) - expected).max() <= 1


def test_killed_run_beyond_the_stop_takes_one_step_more(
    clip: Path, store: Store, tmp_path: Path, count_steps: Callable[[], int]
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    expected, in_all = undisturbed(clip, tmp_path, stages=FUSED), count_steps()

    class Killed(BaseException): ...

    with pytest.MonkeyPatch.context() as patch:
        step = Sampler.step

        def dying(self: Sampler, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
            if i == 6:
                raise Killed
            return step(self, eps, i, z)

        patch.setattr(Sampler, "step", dying)
        with pytest.raises(Killed):
            run_here(store, plan)
    taken = count_steps()
    stop_at(store, plan, "3")
    samples = sample_estimates(store, plan, "fuse", [0, 13])
    assert [sample.step for sample in samples] == [7, 3]
    run_here(store, plan)
    # The checkpoint of the killed window was after all of its 6 steps.
    assert taken + count_steps() == in_all
    assert (tmp_path / "edited.mp4").read_bytes() == expected


def test_states_are_kept_from_prune_and_foretold_in_bytes(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    until = find_stop(plan, "2")
    foretold = stopped_bytes(plan, until, find_need_until(store, plan, until))
    stop_at(store, plan, "2")
    used = sum(usage(store)[kind].bytes for kind in ("data", "records"))
    assert 0.9 * foretold < used <= foretold
    prune(store, keep=kept_keys(store), min_age_seconds=0, orphan_age_seconds=0)
    assert find_standing(store, plan.by_name["fuse"], 2) == {0, 1}


def test_plan_without_a_stop_has_the_same_keys_and_digest(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    stop_at(store, plan, "2")
    again = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    assert (again.digest, list(again.keys())) == (plan.digest, list(plan.keys()))
    assert again.peak_bytes == plan.peak_bytes


def test_published_video_leaves_nothing_to_stop_in(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    run_here(store, plan)
    state = stop_at(store, plan, "2")
    assert (state.state, state.until, state.preview) == ("finished", None, None)


def test_every_shot_is_drawn_even_if_a_cut_is_in_every_frame(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    windows = {"size": 8, "overlap": 2, "scenes": [k / 8 for k in range(1, NUM_FRAMES)]}
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED, windows=windows)
    assert len(plan.by_name["fuse"].chunks) == NUM_FRAMES
    state = stop_at(store, plan, "2")
    assert state.preview == str(tmp_path / "edited.mp4.preview.png")
    many = size_of(state)
    one = compile_small(store, clip, tmp_path / "one.mp4", stages=FUSED)
    assert many[1] > size_of(stop_at(store, one, "2"))[1]


def test_shots_that_no_picture_holds_are_counted(
    clip: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = {"size": 8, "overlap": 2, "scenes": [0.5, 1.0, 1.5]}
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED, windows=windows)
    assert stop_at(store, plan, "1").preview_left_out == 0
    monkeypatch.setattr(preview, "MOST_SHOTS", 3)
    assert stop_at(store, plan, "1").preview_left_out == 1
    assert run_here(store, plan).preview_left_out == 0


def test_one_frame_is_previewed_and_finished(store: Store, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "one.mp4", 1)
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    assert stop_at(store, plan, "1").state == "previewed"
    assert run_here(store, plan).state == "finished"


@pytest.mark.parametrize(
    ("stages", "until", "message"),
    [
        (FUSED, "0", "has 8 steps; give 1 to 7"),
        (FUSED, "8", "has 8 steps; give 1 to 7"),
        (FUSED, "-1", "is not a number of steps"),
        (FUSED, "soon", "is not a number of steps"),
        (FUSED, "fused:3", "no stage 'fused'"),
        (FUSED, "invert:3", "takes no diffusion steps toward a picture"),
        (SMOOTHED, "4", "of which it takes those from 4 on (strength); give 5 to 7"),
        (
            [
                STAGES[0],
                INVERT | {"model": "image"},
                {"op": "smooth", "windows": MEETING | {"mode": "handoff"}},
                STAGES[3],
            ],
            "3",
            "windows.mode handoff",
        ),
        ([STAGES[0], STAGES[3]], "3", "no stage with diffusion steps"),
        (
            [STAGES[0], STAGES[1] | {"num_inference_steps": 1}, FUSE | {"tau": 0}, STAGES[3]],
            "1",
            "it takes one step",
        ),
    ],
)
def test_stop_that_cannot_be_is_one_clear_error(
    clip: Path,
    store: Store,
    tmp_path: Path,
    stages: list[dict[str, Any]],
    until: str,
    message: str,
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=stages)
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        find_stop(plan, until)


def test_picture_of_someone_else_is_not_replaced(clip: Path, store: Store, tmp_path: Path) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    Path(f"{plan.output}.preview.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not ours"):
        preview_path(plan)
    without = compile_small(store, clip, None, stages=FUSED)
    with pytest.raises(UsageError, match="the recipe has none"):
        preview_path(without)


def test_store_that_fills_up_on_the_way_is_one_error_and_goes_on_when_there_is_room(
    clip: Path, tmp_path: Path
) -> None:
    expected = undisturbed(clip, tmp_path, stages=FUSED)
    plan = compile_small(
        Store.open(str(tmp_path / "counted")), clip, tmp_path / "edited.mp4", stages=FUSED
    )
    counted = FailFrom(LocalBackend(tmp_path / "counted"), 10**6)
    stop_at(Store(counted), plan, "5")
    for part in (0.6, 0.8, 0.9):
        store = Store.open(str(tmp_path / f"full-{part}"))
        full = Store(FailFrom(LocalBackend(tmp_path / f"full-{part}"), int(part * counted.writes)))
        with pytest.raises(ResourceError):
            stop_at(full, plan, "5")
        assert stop_at(store, plan, "5").state == "previewed"
    assert run_here(store, plan).state == "finished"
    assert (tmp_path / "edited.mp4").read_bytes() == expected


def test_stop_whose_states_do_not_fit_on_the_disk_is_refused(
    clip: Path, store: Store, tmp_path: Path
) -> None:
    plan = compile_small(store, clip, tmp_path / "edited.mp4", stages=FUSED)
    machine = plan.facts.machine.model_copy(update={"free_disk_bytes": 20_000})
    facts = plan.facts.model_copy(update={"machine": machine})
    small = plan.model_copy(update={"facts": facts})
    with pytest.raises(ResourceError, match="states of all chunks"):
        check_disk_until(store, small, find_stop(small, "5"))
    check_disk_until(store, plan, find_stop(plan, "5"))
