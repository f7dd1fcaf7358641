"""Which models may work together: one latent space, one schedule, and conditions for the UNet they steer."""

from __future__ import annotations

from typing import Any

import pytest

from latentloom.errors import RecipeError
from latentloom.flows.compile import compile_plan
from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import Plan
from tests.facts import FUSE, make_facts, make_model, make_recipe


def compiled(facts: Facts, **changes: Any) -> Plan:
    return compile_plan(make_recipe(**changes), facts)


def test_schedulers_that_disagree_are_printed() -> None:
    facts = make_facts()
    linear = make_model("video", "video", scheduler={"beta_schedule": "linear"})
    models = facts.models | {"video": linear}
    with pytest.raises(RecipeError, match=r"schedulers do not agree.*beta_schedule"):
        compiled(facts.model_copy(update={"models": models}))


def test_models_of_two_latent_spaces_are_refused() -> None:
    facts = make_facts()
    models = facts.models | {"video": make_model("video", "video", downscale=4)}
    with pytest.raises(RecipeError, match="do not share a latent space"):
        compiled(facts.model_copy(update={"models": models}))


def test_latents_are_read_by_models_of_their_own_space_whatever_these_are_called() -> None:
    models = {
        "sd": make_model("image", "sd"),
        "wide": make_model(
            "video", "wide", latent_channels=16, scaling_factor=0.3, shift_factor=0.1
        ),
    }
    specs = {name: {"path": f"/models/{name}"} for name in models}
    stages: list[dict[str, Any]] = [
        {"op": "encode", "model": "sd"},
        {"op": "invert", "model": "wide", "num_inference_steps": 4},
    ]
    facts = make_facts().model_copy(update={"models": models})
    with pytest.raises(RecipeError) as caught:
        compiled(facts, models=specs, stages=stages, output=None)
    assert (
        "(wide: factor 8, 16 channels, scaling factor 0.3, shift factor 0.1;"
        " the latents of 'encode': factor 8, 4 channels, scaling factor 0.18215)"
    ) in str(caught.value)


NARROW: dict[str, Any] = {
    "in_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
}
WIDE = NARROW | {"block_out_channels": [16, 32]}
MOVING = NARROW | {"down_block_types": ["CrossAttnDownBlockMotion", "DownBlockMotion"]}


@pytest.mark.parametrize(
    ("unet", "steering", "fault"),
    [
        ({"image": NARROW, "video": MOVING}, NARROW, None),
        ({"image": NARROW | {"in_channels": 9}, "video": NARROW}, NARROW, None),
        ({"image": NARROW, "video": NARROW}, WIDE, r"'control' cannot steer 'image': .*\(16, 32\)"),
        ({"image": NARROW, "video": WIDE}, NARROW, r"'control' cannot steer 'video': .*\(16, 32\)"),
    ],
)
def test_controlnet_fits_the_unet_that_it_steers_not_its_base_alone(
    unet: dict[str, Any], steering: dict[str, Any], fault: str | None
) -> None:
    facts = make_facts()
    models = {
        name: model.model_copy(
            update={
                "unet": unet.get(name, {}),
                "steering": steering if model.kind == "controlnet" else {},
            }
        )
        for name, model in facts.models.items()
    }
    both: list[dict[str, Any]] = [{"model": name, "controlnet": {}} for name in ("image", "video")]
    stages = [{"op": "encode"}, {"op": "invert"}, FUSE | {"sources": both}, {"op": "decode"}]
    facts = facts.model_copy(update={"models": models})
    if fault is None:
        assert compiled(facts, stages=stages).by_name["fuse"].models["sources.0.controlnet"]
        return
    with pytest.raises(RecipeError, match=fault):
        compiled(facts, stages=stages)


def test_editor_between_frames_may_have_latents_of_its_own() -> None:
    facts = make_facts()
    models = facts.models | {"painter": make_model("image", "painter", scaling_factor=0.5)}
    edit = {"op": "edit", "model": "painter"}
    specs = {name: {"path": f"/models/{name}"} for name in models}
    stages = [edit, {"op": "encode"}, {"op": "decode"}]
    plan = compiled(facts.model_copy(update={"models": models}), models=specs, stages=stages)
    assert plan.by_name["edit"].models == {"model": "painter"}
