"""What makes a stage's key: the readable fields, and the text of prompts that hold for a while.

Never in a key: paths, names of runs and stages, the number of workers, the length of the cut, source code.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

from latentloom.flows.maps import map_fields, reference_fields
from latentloom.schemas.base import digest
from latentloom.schemas.conditions import Condition
from latentloom.schemas.edits import (
    ControlNetEdit,
    EditStage,
    FramesEdit,
    InpaintEdit,
    InstructPix2PixEdit,
    Prompt2PromptEdit,
    ReferencedEdit,
    T2IAdapterEdit,
)
from latentloom.schemas.facts import Facts
from latentloom.schemas.fusion import FuseStage, MixStage
from latentloom.schemas.media import VideoInfo
from latentloom.schemas.recipe import Recipe, TimedPrompts
from latentloom.schemas.stage import WindowRule
from latentloom.schemas.stages import (
    InterpolateStage,
    InvertStage,
    SmoothStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)

Ratios = tuple[tuple[int, float], ...]
"""Absolute source frames, ascending, and the ratio of a mix at each."""

OP_VERSIONS = {
    "decode_video": 1,
    "encode": 1,
    "invert": 1,
    "edit": 1,
    "fuse": 1,
    "mix": 1,
    "smooth": 2,
    "upsample": 2,
    "interpolate": 2,
    "upscale": 1,
    "decode": 1,
    "encode_video": 1,
}
"""Raised when the meaning of an op's result changes; old chunks of it then miss."""

# `keep` stays in: frames that one run keeps and another deletes must not be the same chunks.
_NOT_IN_KEYS = {
    "op",
    "name",
    "inputs",
    "windows",
    "prompt",
    "source_prompt",
    "model",
    "noise_stream",
    "mask",
    "map",
    "checkpoint_every",  # changes no byte
    "ratio",  # time-ranged
}


def stage_models(stage: Stage) -> dict[str, str]:
    """Return the models of a stage by role: ``model``, or the sources and ControlNets of ``fuse``."""
    if isinstance(stage, FuseStage):
        roles = {}
        for index, source in enumerate(stage.sources):
            roles[f"sources.{index}"] = source.model
            if source.controlnet is not None:
                roles[f"sources.{index}.controlnet"] = source.controlnet.model
        return roles
    model = getattr(stage, "model", None)
    roles = {} if model is None else {"model": model}
    if isinstance(stage, ReferencedEdit) and stage.ip_adapter is not None:
        roles["ip_adapter"] = stage.ip_adapter.model
    return roles | {role: use.model for role, use in _conditions(stage)}


def steered_role(role: str) -> str:
    """Return the role of the model that one in another role is built on or steers."""
    return role.removesuffix(".controlnet") if role.startswith("sources.") else "model"


REFERENCES = frozenset({"ip_adapter"})
"""Roles of maps that are looked at and not aligned; they may have any shape."""


def stage_maps(stage: Stage) -> dict[str, str]:
    """Return the side inputs of a stage by role."""
    roles: dict[str, str | None] = {}
    if isinstance(stage, FuseStage):
        for index, source in enumerate(stage.sources):
            if source.controlnet is not None:
                roles[f"sources.{index}.controlnet"] = source.controlnet.map
    roles |= {role: use.map for role, use in _conditions(stage)}
    if isinstance(stage, ReferencedEdit) and stage.ip_adapter is not None:
        roles["ip_adapter"] = stage.ip_adapter.image
    if isinstance(stage, InpaintEdit):
        roles["mask"] = stage.mask
    if isinstance(stage, FramesEdit):
        roles["frames"] = stage.map
    return {role: name for role, name in roles.items() if name is not None}


def _conditions(stage: Stage) -> Iterator[tuple[str, Condition]]:
    """Yield the conditions of an editor by role."""
    if isinstance(stage, ControlNetEdit | InpaintEdit):
        yield from ((f"controlnet.{i}", use) for i, use in enumerate(stage.controlnet))
    if isinstance(stage, T2IAdapterEdit):
        yield from ((f"t2i_adapter.{i}", use) for i, use in enumerate(stage.t2i_adapter))


def draws_noise(stage: Stage) -> bool:
    """Tell whether the seed matters to a stage."""
    if isinstance(stage, InvertStage):
        return stage.noise_start > 0
    if isinstance(stage, FuseStage):
        return any(source.start == "noise" for source in stage.sources)
    if isinstance(stage, Prompt2PromptEdit):
        return False
    return isinstance(stage, EditStage | UpsampleStage | UpscaleStage)


def stage_fields(
    stage: Stage,
    *,
    recipe: Recipe,
    facts: Facts,
    seed: int,
    windows: WindowRule | None,
    frame_shape: Sequence[int],
    pixels: tuple[int, int],
) -> dict[str, Any]:
    """Return the readable form of a stage key.

    Args:
        stage: The stage, its defaults resolved.
        recipe: The recipe, for its numerics profile.
        facts: Model digests and versions.
        seed: Seed in force.
        windows: Resolved window rule, or nothing for a frame-local stage.
        frame_shape: Shape of one frame of the result.
        pixels: Height and width of the frames that it stands for.
    """
    fields: dict[str, Any] = {
        "op": stage.op,
        "version": OP_VERSIONS[stage.op],
        "params": _params(stage),
        "shape": list(frame_shape),
        "models": {
            role: f"{facts.models[name].digest}:{facts.models[name].dtype}"
            for role, name in stage_models(stage).items()
        },
        "numerics": numerics_profile(recipe, facts),
    }
    if draws_noise(stage):
        stream = getattr(stage, "noise_stream", None) or stage.name
        fields["noise"] = {"seed": seed, "stream": stream}
    if maps := stage_maps(stage):
        fields["maps"] = {
            role: reference_fields(name, facts)
            if role in REFERENCES
            else map_fields(name, recipe, facts, pixels)
            for role, name in maps.items()
        }
    if windows is not None:
        fields["windows"] = windows.model_dump()
    return fields


def numerics_profile(recipe: Recipe, facts: Facts) -> dict[str, Any]:
    """Return the profile within which "same bytes" is promised."""
    numerics = recipe.numerics
    profile: dict[str, Any] = {
        "micro_batch": numerics.micro_batch,
        "dtype": numerics.dtype,
        "device": facts.machine.device,
        "torch": facts.machine.torch,
    }
    if facts.machine.device == "cpu":
        profile["threads"] = numerics.threads
    return profile


def timed_values(stage: Stage, prompts: TimedPrompts, facts: Facts) -> dict[str, Any]:
    """Return the texts that condition a stage during one entry of the prompts."""
    if isinstance(stage, FuseStage):
        values: dict[str, Any] = {}
        for index, source in enumerate(stage.sources):
            image = facts.models[source.model].kind == "image"
            text = _prompt_text(source.prompt, prompts, instruct=image)
            scale = stage.guidance_scale if source.guidance_scale is None else source.guidance_scale
            values[f"sources.{index}"] = _conditioning(text, prompts, scale)
        return values
    if isinstance(stage, InvertStage) and not stage.asks_model:
        return {}
    if isinstance(stage, InterpolateStage):
        return {"prompt": _prompt_text(stage.prompt, prompts, instruct=False)}
    if isinstance(stage, InvertStage | SmoothStage | UpsampleStage | UpscaleStage | EditStage):
        text = _prompt_text(stage.prompt, prompts, instruct=isinstance(stage, EditStage))
        values = _conditioning(text, prompts, stage.guidance_scale)
        if isinstance(stage, InstructPix2PixEdit) and stage.image_guidance_scale != 1:
            values["negative"] = prompts.negative
        if isinstance(stage, Prompt2PromptEdit):
            values["source"] = _prompt_text(stage.source_prompt, prompts, instruct=False)
        return values
    return {}


def find_ratios(stage: Stage, info: VideoInfo) -> Ratios:
    """Return the frames at which a mix has the ratios that its recipe names; nothing for other stages.

    Args:
        stage: The stage.
        info: Index of the source: a moment is the first frame at or after it.
    """
    if not isinstance(stage, MixStage):
        return ()
    # Of several moments in one frame the last one holds.
    return tuple({info.frame_range(key.time, None)[0]: key.ratio for key in stage.ratio}.items())


def ratio_in(ratios: Ratios, start: int, stop: int) -> dict[str, Any]:
    """Return the ratio of a mix in frames ``[start, stop)``: one number, or ``[frame, ratio]`` pairs.

    Between pairs it is linear. They are those around the range and no others, so that a change elsewhere
    leaves the chunk's key alone.
    """
    if not ratios:
        return {}
    frames = [frame for frame, _ in ratios]
    first = max(0, bisect_right(frames, start) - 1)
    around = ratios[first : bisect_left(frames, stop - 1) + 1]
    same = len({ratio for _, ratio in around}) == 1
    return {"ratio": around[0][1] if same else [list(pair) for pair in around]}


def chunk_key(
    stage_key: str, start: int, stop: int, timed: dict[str, Any], upstream: list[list[str]]
) -> str:
    """Hash what makes a chunk: its stage, range, time-ranged values and upstream chunks."""
    return digest(
        {"stage": stage_key, "range": [start, stop], "timed": timed, "upstream": list(upstream)}
    )


def _params(stage: Stage) -> dict[str, Any]:
    params = stage.model_dump(mode="json", exclude=_NOT_IN_KEYS)
    if isinstance(stage, InvertStage) and not stage.asks_model:
        del params["guidance_scale"]
    if isinstance(stage, FuseStage):
        params |= {"alpha": stage.first_alpha, "schedule": stage.moves}
        if stage.toward is not None:
            params["toward"] = stage.source_names.index(stage.toward)
    for source in params.get("sources", ()):
        for field in ("model", "name", "prompt"):
            source.pop(field)
    for use in _uses(params):
        makes_canny = use.get("kind") == "canny" and use["map"] is None
        unused = () if makes_canny else ("low_threshold", "high_threshold")
        for field in ("model", "map", "image", *unused):
            use.pop(field, None)
    return params


def _uses(params: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conditions among a stage's parameters."""
    uses = [*params.get("controlnet", ()), *params.get("t2i_adapter", ())]
    uses.append(params.get("ip_adapter"))
    uses += [source["controlnet"] for source in params.get("sources", ())]
    return [use for use in uses if use is not None]


def _prompt_text(name: str | None, prompts: TimedPrompts, *, instruct: bool) -> str:
    if name is None:
        return (instruct and prompts.instruction) or prompts.target
    return "" if name == "none" else str(getattr(prompts, name))


def _conditioning(text: str, prompts: TimedPrompts, guidance_scale: float) -> dict[str, Any]:
    if guidance_scale == 1:
        return {"prompt": text}
    return {"prompt": text, "negative": prompts.negative}
