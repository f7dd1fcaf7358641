"""What fuse and mix make of real networks is what the papers' formulas say; see ``oracle.py``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentloom.ops.edges import edges
from latentloom.ops.noise import frame_noise
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.chunk import open_source
from tests.models import tiny
from tests.runs import compile_small, make_clip, run_here
from tests.tasks.oracle import Frames, Oracle, mix_frame

NUM_STEPS, TAU, SCALE = 4, 1, 2.0
TEXTS = {"source": "a red car", "target": "a blue car", "instruction": "paint it", "negative": "no"}
VIDEO: dict[str, Any] = {
    "model": "video",
    "texts": (TEXTS["target"], TEXTS["negative"]),
    "scale": SCALE,
}
IMAGE: dict[str, Any] = {
    "model": "image",
    "texts": (TEXTS["instruction"], TEXTS["negative"]),
    "scale": SCALE,
}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Desk:
    """A store, a clip of one window, tiny models, and what should come out."""

    folder: Path
    store: Store
    oracle: Oracle

    def run(self, *stages: dict[str, Any]) -> Plan:
        """Encode the clip and run stages."""
        models = {name: {"path": f"{self.folder}/{name}"} for name in ("image", "video", "control")}
        plan = compile_small(
            self.store,
            self.folder / "clip.mp4",
            None,
            models=models,
            prompts=TEXTS,
            stages=[{"op": "encode"}, *stages],
        )
        run_here(self.store, plan)
        return plan

    def read(self, plan: Plan, stage: str) -> torch.Tensor:
        (chunk,) = plan.by_name[stage].chunks
        return torch.from_numpy(self.store.read(chunk.key))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    tiny.save_image_pipeline(folder / "image")
    tiny.save_motion_adapter(folder / "video")
    tiny.save_controlnet(folder / "control")
    make_clip(folder / "clip.mp4", 5, size=16)
    oracle = Oracle(folder / "image", folder / "video", NUM_STEPS)
    return Desk(folder, Store.open(str(folder / "store")), oracle)


INVERT: dict[str, Any] = {"op": "invert", "num_inference_steps": NUM_STEPS}
FUSE: dict[str, Any] = {"op": "fuse", "tau": TAU, "guidance_scale": SCALE}
RISING = [0.6, 0.6 + 0.4 / 3, 0.6 + 0.8 / 3]
TWO: dict[str, Any] = {"sources": [{"model": "image"}, {"model": "video"}], "alpha": 0.6}


def rows_of(weights: list[float]) -> list[tuple[float, float]]:
    """Turn weights of the video model into rows for image and video."""
    return [(1 - a, a) for a in weights]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"match_statistics": "per_frame"},
        {"interpolation": "slerp"},
        {"variance_preserving": True},
        {"space": "eps", "match_statistics": "per_frame"},
        {"space": "x0", "interpolation": "slerp"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()) or "plain",
)
def test_two_sources_are_fused_as_the_paper_says(desk: Desk, options: dict[str, Any]) -> None:
    plan = desk.run(INVERT, FUSE | TWO | options)
    noise = list(desk.read(plan, "invert"))
    wanted = desk.oracle.fuse(noise, [IMAGE, VIDEO], rows_of(RISING), TAU, options)
    assert_close(desk.read(plan, "fuse"), wanted)


@pytest.mark.parametrize(
    ("schedule", "weights"), [("toward_image", [0.6, 0.4, 0.2]), ("constant", [0.6, 0.6, 0.6])]
)
def test_weights_fall_or_stay_as_the_schedule_says(
    desk: Desk, schedule: str, weights: list[float]
) -> None:
    plan = desk.run(INVERT, FUSE | TWO | {"schedule": schedule})
    noise = list(desk.read(plan, "invert"))
    wanted = desk.oracle.fuse(noise, [IMAGE, VIDEO], rows_of(weights), TAU, {})
    assert_close(desk.read(plan, "fuse"), wanted)


def test_source_may_start_from_noise_of_its_own(desk: Desk) -> None:
    sources = [{"model": "image", "start": "noise"}, {"model": "video"}]
    plan = desk.run(INVERT, FUSE | {"sources": sources, "alpha": 0.6})
    noise = list(desk.read(plan, "invert"))
    channels, height, width = noise[0].shape
    fresh = frame_noise(plan.recipe.seed, "fuse/0", range(len(noise)), (channels, height, width))
    image = IMAGE | {"start": list(fresh)}
    assert_close(
        desk.read(plan, "fuse"),
        desk.oracle.fuse(noise, [image, VIDEO], rows_of(RISING), TAU, {}),
    )


def test_source_is_steered_by_the_edges_of_the_sources_frames(desk: Desk) -> None:
    sources = [{"model": "image", "controlnet": {}}, {"model": "video"}]
    plan = desk.run(INVERT, FUSE | {"sources": sources, "alpha": 0.6})
    noise = list(desk.read(plan, "invert"))
    frames = open_source(plan).read(0, len(noise)).astype(np.uint8)
    image = IMAGE | {"condition": list(torch.from_numpy(edges(frames)))}
    assert_close(
        desk.read(plan, "fuse"),
        desk.oracle.fuse(noise, [image, VIDEO], rows_of(RISING), TAU, {}),
    )


@pytest.mark.parametrize(("num_sources", "space"), [(3, "x"), (4, "x0")])
def test_more_sources_take_their_weights_in_order(desk: Desk, num_sources: int, space: str) -> None:
    written = [
        {"model": "image", "name": "caption", "prompt": "target"},
        {"model": "video"},
        {"model": "image"},
        {"model": "video", "name": "still", "prompt": "source", "guidance_scale": 1},
    ]
    plain = {"model": "video", "texts": (TEXTS["source"], ""), "scale": 1}
    wanted = [IMAGE | {"texts": VIDEO["texts"]}, VIDEO, IMAGE, plain]
    rows = {
        3: [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.8, 0.0]],
        4: [[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.0, 0.2, 0.2, 0.6]],
    }[num_sources]
    sources = {"sources": written[:num_sources], "weights": rows, "space": space}
    plan = desk.run(INVERT, FUSE | sources)
    noise = list(desk.read(plan, "invert"))
    fused = desk.oracle.fuse(noise, wanted[:num_sources], rows, TAU, {"space": space})
    assert_close(desk.read(plan, "fuse"), fused)


def test_weights_written_out_are_the_video_models_wherever_it_stands(desk: Desk) -> None:
    falling = [0.9, 0.5, 0.25]
    plan = desk.run(INVERT, FUSE | {"sources": TWO["sources"], "weights": falling})
    noise = list(desk.read(plan, "invert"))
    wanted = desk.oracle.fuse(noise, [IMAGE, VIDEO], rows_of(falling), TAU, {})
    assert_close(desk.read(plan, "fuse"), wanted)
    swapped = {"sources": TWO["sources"][::-1], "weights": falling}
    assert_close(desk.read(desk.run(INVERT, FUSE | swapped), "fuse"), wanted)


def test_controlnet_steers_its_part_of_the_steps_only(desk: Desk) -> None:
    def fused(use: dict[str, Any] | None) -> torch.Tensor:
        sources = [{"model": "image", "controlnet": use}, {"model": "video"}]
        return desk.read(desk.run(INVERT, FUSE | {"sources": sources}), "fuse")

    plain, always = fused(None), fused({})
    first = fused({"control_guidance_end": 0.25})
    assert torch.equal(fused({"control_guidance_start": 0.8}), plain)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, always)


def test_inversions_and_their_mix_are_those_of_the_paper(desk: Desk) -> None:
    plan = desk.run(
        INVERT | {"name": "by_image", "model": "image", "prompt": "negative"},
        INVERT | {"name": "by_video", "inputs": ["encode"], "prompt": "negative"},
        {"op": "mix", "inputs": ["by_image", "by_video"], "ratio": 0.25},
    )
    clean, text = list(desk.read(plan, "encode")), TEXTS["negative"]
    image, video = (desk.oracle.invert(model, clean, text) for model in ("image", "video"))
    assert_close(desk.read(plan, "by_image"), image)
    assert_close(desk.read(plan, "by_video"), video)
    mixed = [0.25 * one + 0.75 * other for one, other in zip(image, video, strict=True)]
    assert_close(desk.read(plan, "mix"), mixed)


@pytest.mark.parametrize("options", [{}, {"interpolation": "slerp"}, {"variance_preserving": True}])
def test_ratio_changes_from_key_to_key(desk: Desk, options: dict[str, Any]) -> None:
    # 8 frames a second: frames 1 and 4.
    keys = [{"time": 0.1, "ratio": 0.2}, {"time": 0.5, "ratio": 0.8}]
    plan = desk.run(
        INVERT | {"name": "by_image", "model": "image"},
        INVERT | {"name": "by_video", "inputs": ["encode"]},
        {"op": "mix", "inputs": ["by_image", "by_video"], "ratio": keys, **options},
    )
    ratios = [0.2, 0.2, 0.4, 0.6, 0.8]
    image, video = desk.read(plan, "by_image"), desk.read(plan, "by_video")
    wanted = [mix_frame([image[f], video[f]], (r, 1 - r), 1, options) for f, r in enumerate(ratios)]
    assert_close(desk.read(plan, "mix"), wanted)


def assert_close(found: torch.Tensor, wanted: Frames) -> None:
    assert float((found - torch.stack(wanted)).abs().max()) <= TOLERANCE
