"""Load the models of stages before their first chunk comes, once per process."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from latentloom.schemas.plan import Plan
from latentloom.tasks.loading import PlanModels, forget_changed_models, use_profile


def preload(plan: Plan, stages: Iterable[str]) -> None:
    """Load what the stages will ask for; an IP-Adapter, which needs a scale, is loaded by its stage."""
    use_profile(plan)
    forget_changed_models(plan)
    models = PlanModels(plan)
    loaders: dict[str, Callable[[str], Any]] = {
        "image": models.image,
        "video": models.video,
        "vae": models.vae,
        "inpaint": models.painter,
        "instruct": models.painter,
        "controlnet": models.controlnet,
        "t2i_adapter": models.t2i_adapter,
        "upsampler": models.upsampler,
        "video_upsampler": models.upsampler,
        "interpolator": models.interpolator,
        "upscaler": models.upscaler,
    }
    names = {name for stage in stages for name in plan.by_name[stage].models.values()}
    for name in sorted(names):
        load = loaders.get(plan.facts.models[name].kind)
        if load is not None:
            load(name)
