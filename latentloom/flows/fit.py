"""Which kinds of models fit which roles, and how a misfit is worded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from latentloom.flows.bound import LatentSpace, NoiseLevel
from latentloom.models.fits import adapter_fault, controlnet_fault
from latentloom.schemas.edits import InpaintEdit, InstructPix2PixEdit, OutpaintEdit
from latentloom.schemas.facts import ModelFacts, ModelKind
from latentloom.schemas.fusion import FuseStage
from latentloom.schemas.stage import WindowRule
from latentloom.schemas.stages import (
    InterpolateStage,
    InvertStage,
    SmoothStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)

HINTS: Final = {
    ("frames", "latents"): "put an encode stage between them",
    ("frames", "noise"): "put encode and invert stages between them",
    ("latents", "noise"): "put an invert stage between them",
    ("latents", "frames"): "put a decode stage between them",
    ("noise", "latents"): "put a fuse or smooth stage between them",
    ("noise", "frames"): "put fuse or smooth and decode stages between them",
}
"""What to do where a stage makes the first and its reader needs the second."""

_KINDS: Final[dict[str, tuple[ModelKind, ...]]] = {
    "controlnet": ("controlnet",),
    "t2i_adapter": ("t2i_adapter",),
    "ip_adapter": ("ip_adapter",),
}
"""Kinds that a part of a role asks for, whatever the stage."""


def worded_channels(model: ModelFacts) -> str:
    """Return what tells models apart that are fed more than latents; nothing for others."""
    if model.kind not in ("image", "inpaint", "instruct", "upsampler"):
        return ""
    return f" (its UNet takes {model.in_channels} channels for {model.latent_channels}-channel latents)"


def accepted_kinds(stage: Stage, role: str) -> tuple[ModelKind, ...]:
    """Return the kinds of models that a stage takes in a role, such as ``sources.0.controlnet``."""
    for part in role.split("."):
        if part in _KINDS:
            return _KINDS[part]
    if isinstance(stage, FuseStage | InvertStage):
        return ("image", "video")
    if isinstance(stage, InpaintEdit | OutpaintEdit):
        return ("image", "inpaint")
    if isinstance(stage, SmoothStage):
        return ("video",)
    if isinstance(stage, InstructPix2PixEdit):
        return ("instruct",)
    if isinstance(stage, UpscaleStage):
        return ("upscaler",)
    if isinstance(stage, UpsampleStage):
        return ("upsampler", "video_upsampler")
    return ("interpolator",) if isinstance(stage, InterpolateStage) else ("image",)


def steering_fault(model: ModelFacts, steered: ModelFacts) -> str | None:
    """Say how a ControlNet or T2I-Adapter does not fit the model that it steers, if it does not."""
    if not steered.unet:
        return None
    if model.kind == "t2i_adapter":
        return adapter_fault(model.steering, steered.unet, steered.downscale)
    # An inpainting UNet reads more than latents; a ControlNet is given the latents alone.
    return controlnet_fault(model.steering, steered.unet | {"in_channels": steered.latent_channels})


def latent_space(model: ModelFacts) -> LatentSpace:
    """Return the latent space of a model, as its configuration says."""
    return LatentSpace(
        model.downscale, model.latent_channels, model.scaling_factor, model.shift_factor
    )


def frozen(scheduler: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return a scheduler's settings as text, hashable and in one order."""
    return tuple(sorted((key, str(value)) for key, value in scheduler.items()))


def differences(model: ModelFacts, level: NoiseLevel) -> str:
    """Word the scheduler settings in which a model differs from an inversion."""
    theirs = dict(level.scheduler)
    ours = {key: str(value) for key, value in model.scheduler.items()}
    different = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{k} {ours.get(k)} (inversion: {theirs.get(k)})" for k in different)


def worded_rules(rules: Mapping[str, WindowRule | None]) -> str:
    """Word window rules by the names of their stages."""
    return ", ".join(
        f"{name} size {rule.size} overlap {rule.overlap} mode {rule.mode}"
        for name, rule in rules.items()
        if rule is not None
    )
