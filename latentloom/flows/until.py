"""Stop a run inside a stage: which one and where, what is needed until there, what stands there already."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from latentloom.errors import UsageError
from latentloom.flows import need as needs
from latentloom.flows.estimate import CHUNK_OVERHEAD_BYTES, COSINE_BYTES
from latentloom.flows.need import Need
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.schemas.run import StopPoint
from latentloom.storage.stops import read_stops, remember_stops
from latentloom.storage.store import Store

DENOISING = ("fuse", "smooth", "edit", "upsample", "upscale")
"""Ops that take diffusion steps toward a picture; an inversion walks away from one."""


def find_stop(plan: Plan, until: str) -> StopPoint:
    """Find where a run is to stop.

    Args:
        plan: The plan.
        until: ``N`` or ``STAGE:N``: steps done, counted from the noisiest whatever the strength. Without a
            stage it is the last one with steps that the result depends on.

    Raises:
        UsageError: If there is no such stage, or it does not stop on its way there.
    """
    name, _, number = until.rpartition(":")
    if not number.isascii() or not number.isdigit():
        raise UsageError(f"--until-step {until!r} is not a number of steps; give N or STAGE:N")
    stage, step = _stage(plan, name), int(number)
    if stage.in_order:
        raise UsageError(
            f"--until-step: a window of stage {stage.name!r} begins with what the one before it has become"
            " (windows.mode handoff), so they cannot all stop inside; leave it out, or name another stage"
        )
    first, num_steps = _steps(stage)
    if first < step < num_steps:
        return StopPoint(stage=stage.name, step=step, num_steps=num_steps)
    begins = f", of which it takes those from {first} on (strength)" if first else ""
    within = f"give {first + 1} to {num_steps - 1}"
    if first + 1 >= num_steps:
        within = "it takes one step, so there is nothing to stop before; leave out --until-step"
    raise UsageError(
        f"--until-step {step}: stage {stage.name!r} has {num_steps} steps{begins}; {within}"
    )


def announce_stop(store: Store, plan: Plan, until: StopPoint) -> None:
    """Note where chunks are about to stop, so that whoever goes on knows where to look.

    One that a killed run left there or further on, without an estimate, takes one step more.
    """
    stage = plan.by_name[until.stage]
    if stage.steps:
        return  # what its windows are after each step has keys of its own
    known = (*stage.checkpoints, *read_stops(store, stage.key))
    further = [at + 1 for at in known if until.step <= at < until.num_steps - 1]
    remember_stops(store, stage.key, [until.step, *further])


def find_need_until(store: Store, plan: Plan, until: StopPoint) -> Need:
    """Find what is to be computed so that every chunk that is needed stands where the run is to stop."""
    stage, present = plan.by_name[until.stage], store.present(list(plan.keys()))
    standing = find_standing(store, stage, until.step)
    return needs.find_need_until(plan, present, until, standing=standing, look=store.present)


def find_standing(store: Store, stage: PlannedStage, step: int) -> set[int]:
    """Return the indices of the chunks at which a run has stopped, after so many steps or more.

    Windows that meet at every step stand where their records say; there it is empty.
    """
    if stage.steps:
        return set()
    stops = [stop for stop in read_stops(store, stage.key) if stop >= step]
    keys = {
        chunk.stop_key(stop): index for index, chunk in enumerate(stage.chunks) for stop in stops
    }
    return {keys[key] for key in store.present(keys)} if keys else set()


def checkpoint_keys(store: Store, plan: Plan) -> dict[str, str]:
    """Return the key of every checkpoint that a chunk may have inside it, and the chunk's own."""
    found = dict(plan.checkpoint_keys())
    for stage in plan.stages:
        if stage.op in DENOISING and not stage.steps:
            stops = read_stops(store, stage.key)
            found |= {chunk.stop_key(stop): chunk.key for chunk in stage.chunks for stop in stops}
    return found


def stopped_bytes(plan: Plan, until: StopPoint, need: Need) -> int:
    """Predict what a run adds to the store up to its stop.

    Unlike a run to the end it keeps the states of all chunks at once, and the frames that they read.
    """
    total = 0
    for stage in plan.stages:
        for index in need.get(stage.name, ()):
            if stage.name == until.stage:
                frames = stage.rate * stage.chunks[index].num_frames
                total += _states_bytes(plan, stage, frames, until)
            else:
                total += stage.chunk_bytes[index]
    return total


def _states_bytes(plan: Plan, stage: PlannedStage, num_frames: int, until: StopPoint) -> int:
    """Return the bytes of a checkpoint at a stop: states and estimate in float32, and its record."""
    states, shape = _num_states(stage), _latent_shape(plan, stage)
    cosines = (states - 1) * num_frames * until.step if stage.op == "fuse" else 0
    values = num_frames * (states + 1) * prod(shape)
    return 4 * values + COSINE_BYTES * cosines + CHUNK_OVERHEAD_BYTES


def _num_states(stage: PlannedStage) -> int:
    params = stage.variants[0].params
    if stage.op == "fuse":
        return len(params["sources"])
    return 3 if params.get("kind") == "prompt2prompt" else 1


def _latent_shape(plan: Plan, stage: PlannedStage) -> tuple[int, ...]:
    """Return the shape of a frame's latents in a stage that may make frames."""
    if stage.produces != "frames":
        return stage.frame_shape
    model = plan.facts.models[stage.models["model"]]
    multiple = model.downscale * model.latent_multiple
    height, width = (-(-side // multiple) * model.latent_multiple for side in stage.frame_shape[:2])
    return (model.latent_channels, height, width)


def _stage(plan: Plan, name: str) -> PlannedStage:
    """Return the stage of that name, or the last one with steps that the result depends on."""
    if name and name not in plan.by_name:
        known = ", ".join(stage.name for stage in plan.stages)
        raise UsageError(f"--until-step: no stage {name!r}; the recipe's stages are: {known}")
    candidates = [plan.by_name[name]] if name else list(_upstream(plan))
    for stage in candidates:
        if stage.op in DENOISING and stage.models:
            return stage
    if name:
        raise UsageError(
            f"--until-step: stage {name!r} ({candidates[0].op}) takes no diffusion steps toward a"
            " picture; name another one"
        )
    raise UsageError(
        f"--until-step: the recipe has no stage with diffusion steps ({', '.join(DENOISING)}), so there"
        " is nothing to stop inside; leave it out"
    )


def _upstream(plan: Plan) -> Iterator[PlannedStage]:
    """Yield the last stage and all that it depends on, the later ones first."""
    wanted = {plan.stages[-1].name}
    for stage in reversed(plan.stages):
        if stage.name in wanted:
            wanted.update(stage.inputs)
            yield stage


def _steps(stage: PlannedStage) -> tuple[int, int]:
    """Return the first step that a stage takes, and the number of all."""
    params: dict[str, Any] = stage.variants[0].params
    num_steps, strength = int(params["num_inference_steps"]), params.get("strength")
    return num_steps - int(num_steps * (1.0 if strength is None else strength)), num_steps
