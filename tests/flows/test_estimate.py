"""What the predicted memory of a stage follows, and what it does not."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest

from latentloom.flows.compile import compile_plan
from latentloom.flows.estimate import ITEM_BYTES, WORKING_FACTOR
from latentloom.schemas.plan import Plan
from tests.facts import make_facts, make_recipe

INTERPOLATED = [{"op": "encode"}, {"op": "interpolate"}, {"op": "decode"}]


def planned(num_frames: int = 600, **changes: Any) -> Plan:
    return compile_plan(make_recipe(**changes), make_facts(num_frames))


def test_interpolator_takes_the_same_memory_whatever_the_micro_batch() -> None:
    """It always sees the five frames from one known one to the next."""
    peaks = {
        planned(stages=INTERPOLATED, numerics={"micro_batch": size})
        .by_name["interpolate"]
        .peak_bytes
        for size in (1, 4, 16)
    }
    assert len(peaks) == 1


@pytest.mark.parametrize(("frames", "held"), [(8, 16), (64, 128), (256, 512)])
def test_windows_hold_the_whole_chunks_that_they_touch(frames: int, held: int) -> None:
    """Of the window at hand and of the next; the one that crosses a border reads two chunks."""
    rule = {"size": 8, "overlap": 2}

    def invert(size: int) -> int:
        return planned(chunks={"frames": size}, windows=rule).by_name["invert"].peak_bytes

    encode = planned().by_name["encode"]
    frame_bytes = WORKING_FACTOR * prod(encode.frame_shape) * ITEM_BYTES[encode.dtype]
    more = 2 * (held - rule["size"]) * frame_bytes
    assert invert(frames) - invert(1) == pytest.approx(more, abs=2)


def test_window_that_goes_on_from_another_holds_it_too() -> None:
    def smooth(mode: str) -> int:
        invert = {"op": "invert", "model": "image", "num_inference_steps": 4}
        stages = [{"op": "encode"}, invert, {"op": "smooth", "windows": {"mode": mode}}]
        return planned(stages=stages, output=None).by_name["smooth"].peak_bytes

    assert smooth("handoff") > smooth("independent")
