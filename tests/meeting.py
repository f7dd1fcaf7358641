"""Small runs whose windows meet at every step, and what is asked of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentloom.flows.need import Need, find_need
from latentloom.schemas.plan import Plan
from latentloom.schemas.run import RunState
from latentloom.storage.store import Store
from tests.runs import STAGES, compile_small

STEPS = 4
WINDOWS = {"size": 8, "overlap": 3, "mode": "co_denoise"}
SMOOTH: list[dict[str, Any]] = [
    {"op": "encode"},
    {"op": "invert", "num_inference_steps": STEPS},
    {"op": "smooth", "guidance_scale": 2.0},
]
FUSE = [SMOOTH[0], SMOOTH[1], STAGES[2] | {"tau": 2, "schedule": "constant"}]


def make_plan(store: Store, clip: Path, stages: list[dict[str, Any]], **changes: Any) -> Plan:
    """Compile stages whose windows meet."""
    return compile_small(store, clip, None, **({"stages": stages, "windows": WINDOWS} | changes))


def read_all(store: Store, plan: Plan, name: str) -> bytes:
    """Return the bytes of all chunks of a stage."""
    return b"".join(store.read(chunk.key).tobytes() for chunk in plan.by_name[name].chunks)


def foretold(store: Store, plan: Plan) -> Need:
    """Return what a plan says is to be computed."""
    present = store.present(list(plan.keys()))
    return find_need(plan, present, published=False, look=store.present)


def done(store: Store, state: RunState) -> dict[str, list[tuple[int, int]]]:
    """Return step and index of every window that a run took to a step, by stage."""
    found: dict[str, list[tuple[int, int]]] = {}
    for event in store.events(state.run):
        if event.kind == "chunk_computed" and "step" in event.detail:
            step, index = event.detail["step"], event.index
            assert isinstance(step, int)
            assert index is not None
            found.setdefault(event.stage or "", []).append((step, index))
    return {name: sorted(pairs) for name, pairs in found.items()}


def as_pairs(need: Need, name: str) -> list[tuple[int, int]]:
    """Return step and index of every window that a stage needs."""
    return sorted((step.step, index) for step in need.steps[name] for index in step.windows)
