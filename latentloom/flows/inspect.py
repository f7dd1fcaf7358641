"""Answer questions about runs from their plans, records and events: status, why, what to keep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentloom.errors import StoreFormatError, UsageError
from latentloom.flows.runs import find_run, is_running, read_plan, read_state
from latentloom.flows.similarity import similarity_by_stage
from latentloom.flows.until import checkpoint_keys
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.schemas.record import Record
from latentloom.schemas.run import RunState
from latentloom.storage.frames import Overlaps
from latentloom.storage.store import Store
from latentloom.tasks.published import is_published

NUM_SAMPLES = 8


def list_runs(store: Store) -> list[tuple[RunState, int, int]]:
    """Return every run with how many of its lasting chunks are there, and how many there are."""
    listed = []
    for run_id in store.runs():
        plan = read_plan(store, run_id)
        keys = list(plan.lasting_keys())
        listed.append(
            (_alive(store, read_state(store, run_id)), len(store.present(keys)), len(keys))
        )
    return listed


def describe_run(store: Store, run_id: str) -> dict[str, Any]:
    """Return how far each stage of a run is, by its records, and the seconds its events tell."""
    found = find_run(store, run_id)
    plan, state = read_plan(store, found), _alive(store, read_state(store, found))
    present = store.present(list(plan.keys()))
    seconds: dict[str, float] = {}
    events = list(store.events(found))
    alike = similarity_by_stage(events)
    for event in events:
        if event.stage and event.seconds:
            seconds[event.stage] = seconds.get(event.stage, 0.0) + event.seconds
    finished = state.state == "finished"
    stages = []
    for stage in plan.stages:
        if not stage.stored:
            continue
        there = sum(chunk.key in present for chunk in stage.chunks)
        done = len(stage.chunks) if stage.transient and finished else there
        stages.append(
            {
                "op": stage.op,
                "name": stage.name,
                "key": stage.key,
                "chunks": len(stage.chunks),
                "done": done,
                "transient": stage.transient,
                "seconds": round(seconds.get(stage.name, 0.0), 3),
                "similarity": alike.get(stage.name, []),
                "step": _step_at(store, stage) if done < len(stage.chunks) else None,
            }
        )
    return {
        "run": found,
        "name": state.name,
        "state": state.state,
        "source": state.source,
        "output": state.output,
        "error": state.error,
        "until": None if state.until is None else state.until.model_dump(mode="json"),
        "preview": state.preview,
        "preview_left_out": state.preview_left_out,
        "warnings": list(plan.warnings),
        "stages": stages,
    }


def _step_at(store: Store, stage: PlannedStage) -> dict[str, int] | None:
    """Return the newest step that a window of a stage has been taken to, and how many have."""
    for step in reversed(stage.steps[:-1]):
        windows = len(store.present(stage.keys_at(step)))
        if windows:
            return {"step": step, "last": stage.steps[-1], "windows": windows}
    return None


def explain(store: Store, run_id: str, name: str) -> dict[str, Any]:
    """Tell why a stage of a run could not reuse what an earlier run made.

    The stage is compared with the same one of the earlier run that is most like it; the fields, time-ranged
    values or upstream stages that differ are the reasons.

    Raises:
        UsageError: If there is no such run or stage.
    """
    found = find_run(store, run_id)
    plan = read_plan(store, found)
    if name not in plan.by_name:
        known = ", ".join(stage.name for stage in plan.stages)
        raise UsageError(f"run {found} has no stage {name!r}; its stages are: {known}")
    earlier = [
        (run, other.by_name[name])
        for run, other in _plans(store)
        if run < found and name in other.by_name
    ]
    if not earlier:
        lines = [f"no earlier run in {store.uri} has a stage {name!r}; all of it was new"]
        return {"run": found, "stage": name, "against": None, "lines": lines, "differences": []}
    stage = plan.by_name[name]
    against, _ = min(reversed(earlier), key=lambda item: _distance(stage, item[1]))
    differences = _reasons(plan, read_plan(store, against), name)
    lines = [f"{name} of run {found} against run {against}:"]
    lines += [f"  {difference}" for difference in differences] or [
        "  nothing differs; all chunks are shared"
    ]
    return {
        "run": found,
        "stage": name,
        "against": against,
        "lines": lines,
        "differences": differences,
    }


def kept_keys(store: Store) -> set[str]:
    """Return the keys that registered runs need: lasting chunks, and others while there is work to do.

    Those are transient chunks that a reader waits for, checkpoints inside chunks that are not done, and
    windows between the steps of a stage that is not done.

    Raises:
        StoreFormatError: If a plan cannot be read: what it needs is not known.
    """
    kept: set[str] = set()
    for plan in (read_plan(store, run_id) for run_id in store.runs()):
        kept.update(plan.lasting_keys())
        present = store.present(list(plan.keys()))
        for stage in plan.stages:
            if not stage.transient:
                continue
            for index, chunk in enumerate(stage.chunks):
                if not present.issuperset(plan.readers(stage.name, index)):
                    kept.add(chunk.key)
        inside = checkpoint_keys(store, plan)
        kept.update(inner for inner, chunk in inside.items() if chunk not in present)
        for stage in plan.stages:
            if not present.issuperset(chunk.key for chunk in stage.chunks):
                kept.update(key for step in stage.steps for key in stage.keys_at(step))
    return kept


def export_run_stage(store: Store, run_id: str, name: str, destination: str) -> None:
    """Write what a stage of a run made as one Zarr array; overlapping windows are blended.

    Raises:
        UsageError: If there is no such stage, chunks of it are missing, or the destination exists.
    """
    from latentloom.storage.export import export_stage

    found = find_run(store, run_id)
    records, rule = stage_records(store, found, name)
    attributes = {"run": found, "stage": name}
    export_stage(store, records, destination, overlaps=rule, attributes=attributes)


def stage_records(store: Store, run_id: str, name: str) -> tuple[list[Record], Overlaps | None]:
    """Return the records of a finished stage in order, and how its overlapping windows are read.

    Raises:
        UsageError: If there is no such stage, or chunks of it are missing.
    """
    plan = read_plan(store, run_id)
    if name not in plan.by_name or not plan.by_name[name].stored:
        known = ", ".join(stage.name for stage in plan.stages if stage.stored)
        raise UsageError(f"run {run_id} has no stage {name!r}; its stages are: {known}")
    stage = plan.by_name[name]
    found = [store.find(chunk.key) for chunk in stage.chunks]
    records = [record for record in found if record is not None]
    if len(records) < len(found):
        raise UsageError(
            f"stage {name!r} of run {run_id} lacks {len(found) - len(records)} of {len(found)} chunks;"
            f" `latentloom resume {run_id}` computes them (frames are deleted unless keep: true)"
        )
    if stage.unit != "windows":
        return records, None
    rule = stage.variants[0].fields["windows"]
    # The average of the noise of two windows that never met has too little of it.
    alone = stage.produces == "noise" and rule["mode"] == "independent"
    shape = None if alone else rule["weights"]
    return records, Overlaps(frames=rule["overlap"], shape=shape)


def sample_rows(plan: Plan, output: str) -> list[list[Any]]:
    """Read frames at moments spread over the cut, of the source and of the video made from it."""
    from latentloom.media.decode import FrameReader
    from latentloom.media.probe import probe
    from latentloom.tasks.chunk import open_source

    if not is_published(plan, output):
        raise UsageError(f"{output} is not this run's any more; run its recipe again")
    step = max(1, plan.num_frames // NUM_SAMPLES)
    offsets = list(range(step // 2, plan.num_frames, step))[:NUM_SAMPLES]
    source = open_source(plan)
    made = FrameReader(Path(output), probe(Path(output)))
    rows = [
        [source.read(plan.start + offset, plan.start + offset + 1)[0] for offset in offsets],
        [made.read(offset * plan.rate, offset * plan.rate + 1)[0] for offset in offsets],
    ]
    return [[_eight_bits(frame) for frame in row] for row in rows]


def _eight_bits(frame: Any) -> Any:
    return (frame >> 8).astype("uint8") if frame.dtype == "uint16" else frame


def _alive(store: Store, state: RunState) -> RunState:
    """Show a run whose process died as interrupted; nothing has to be unlocked."""
    if state.state != "running":
        return state
    if is_running(store, state.plan):
        return state
    return state.model_copy(
        update={"state": "interrupted", "error": "its process died; the same command continues it"}
    )


def _plans(store: Store) -> Iterator[tuple[str, Plan]]:
    for run_id in store.runs():
        try:
            yield run_id, read_plan(store, run_id)
        except StoreFormatError:
            continue


def _distance(stage: PlannedStage, other: PlannedStage) -> tuple[int, int]:
    mine = {chunk.key for chunk in stage.chunks}
    shared = sum(chunk.key in mine for chunk in other.chunks)
    return -shared, len(_field_differences(stage, other))


def _reasons(plan: Plan, other: Plan, name: str) -> list[str]:
    stage, before = plan.by_name[name], other.by_name[name]
    reasons = _field_differences(stage, before)
    known = {chunk.key for chunk in before.chunks}
    new = [chunk for chunk in stage.chunks if chunk.key not in known]
    if not stage.stored or reasons or not new:
        return reasons
    ranges = {(chunk.start, chunk.stop): chunk for chunk in before.chunks}
    moved = [chunk for chunk in new if (chunk.start, chunk.stop) not in ranges]
    if moved:
        reasons.append(f"{len(moved)} chunks have other frames (the cut or a shot boundary moved)")
    timed = {
        f"{key}: {before.timed[ranges[c.start, c.stop].timed].get(key)!r} -> {value!r}"
        for c in new
        if (c.start, c.stop) in ranges
        for key, value in stage.timed[c.timed].items()
        if before.timed[ranges[c.start, c.stop].timed].get(key) != value
    }
    reasons += sorted(timed)
    for upstream in stage.inputs:
        if upstream in other.by_name and upstream != name:
            inner = _reasons(plan, other, upstream)
            reasons += [f"{upstream}: {line}" for line in inner]
    return reasons


def _field_differences(stage: PlannedStage, other: PlannedStage) -> list[str]:
    """Name the fields of the stage key that differ, over all variants."""
    if {v.key for v in stage.variants} <= {v.key for v in other.variants}:
        return []
    mine, theirs = _flat(stage.variants[-1].fields), _flat(other.variants[-1].fields)
    return [
        f"{field}: {theirs.get(field)!r} -> {mine.get(field)!r}"
        for field in sorted({*mine, *theirs})
        if mine.get(field) != theirs.get(field)
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat |= _flat(item, key)
    return flat
