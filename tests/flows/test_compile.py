"""What compile promises: pure, merkle keys, and changes that reach no further than they must."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import RecipeError, ResourceError
from latentloom.flows.compile import compile_plan
from latentloom.flows.need import find_need
from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import Plan
from latentloom.schemas.recipe import Recipe
from tests.facts import FUSE, make_facts, make_info, make_model, make_recipe

STAGES = ("encode", "invert", "fuse", "decode", "encode_video")


def compiled(facts: Facts | None = None, **changes: Any) -> Plan:
    return compile_plan(make_recipe(**changes), facts or make_facts())


def keys(plan: Plan, stage: str) -> set[str]:
    return {chunk.key for chunk in plan.by_name[stage].chunks}


def changed(before: Plan, after: Plan) -> dict[str, int]:
    """How many chunks of each stage the first plan does not have."""
    return {name: len(keys(after, name) - keys(before, name)) for name in STAGES}


def test_same_recipe_and_facts_give_the_same_plan() -> None:
    assert compiled().model_dump_json() == compiled().model_dump_json()


def test_stages_follow_one_another_from_source_to_segments() -> None:
    plan = compiled()
    assert [stage.name for stage in plan.stages] == ["decode_video", *STAGES]
    assert plan.by_name["encode"].frame_shape == (4, 6, 8)
    assert plan.by_name["decode"].transient
    assert plan.output == "/out/clip.mp4"


def test_alpha_changes_fuse_and_what_follows_only() -> None:
    after = compiled(stages=[*make_stages()[:2], FUSE | {"alpha": 0.4}, {"op": "decode"}])
    difference = changed(compiled(), after)
    assert difference["encode"] == difference["invert"] == 0
    assert difference["fuse"] == len(after.by_name["fuse"].chunks)
    assert difference["encode_video"] == 1


def test_negative_prompt_without_guidance_changes_nothing() -> None:
    unguided = [*make_stages()[:2], FUSE | {"guidance_scale": 1.0}, {"op": "decode"}]
    texts = {"source": "a red car", "target": "a blue car"}
    before = compiled(stages=unguided, prompts=texts)
    after = compiled(stages=unguided, prompts=texts | {"negative": "blurry"})
    assert set(changed(before, after).values()) == {0}


def test_longer_cut_adds_chunks_and_changes_only_those_at_its_end() -> None:
    source = {"uri": "/clips/clip.mp4", "size": {"width": 64, "height": 48}}
    before = compiled(source=source | {"end": 6.0})
    after = compiled(source=source | {"end": 9.0})
    kept = {name: len(keys(before, name) & keys(after, name)) for name in STAGES}
    assert kept["encode"] == len(before.by_name["encode"].chunks) - 1
    # The last window slid; the one before it reads the chunk of latents that grew.
    assert kept["invert"] == len(before.by_name["invert"].chunks) - 2
    assert kept["decode"] >= len(before.by_name["decode"].chunks) - 2


def test_later_start_keeps_the_grid() -> None:
    source = {"uri": "/clips/clip.mp4", "size": {"width": 64, "height": 48}}
    before, after = compiled(source=source), compiled(source=source | {"start": 2.0})
    shared = keys(before, "encode") & keys(after, "encode")
    assert len(shared) == len(after.by_name["encode"].chunks) - 1


def test_prompt_of_one_shot_changes_that_shot_only() -> None:
    texts = [
        {"end": 5.0, "source": "a red car", "target": "a blue car"},
        {"start": 5.0, "source": "a red car", "target": "a blue car"},
    ]
    before = compiled(prompts=texts)
    after = compiled(prompts=[texts[0], texts[1] | {"target": "a green car"}])
    difference = changed(before, after)
    assert difference["encode"] == difference["invert"] == 0
    late = [chunk for chunk in after.by_name["fuse"].chunks if chunk.start >= 50]
    assert difference["fuse"] == len(late)
    # The chunk that straddles the boundary is decoded again, those before it are not.
    assert difference["decode"] == len(
        [chunk for chunk in after.by_name["decode"].chunks if chunk.stop > 50]
    )


def test_windows_do_not_cross_a_prompt_boundary_even_an_equal_one() -> None:
    texts = [{"end": 5.0, "target": "a"}, {"start": 5.0, "target": "a"}]
    chunks = compiled(prompts=texts).by_name["fuse"].chunks
    assert all(chunk.stop <= 50 or chunk.start >= 50 for chunk in chunks)


def test_gap_between_prompts_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"no entry covers 3\.000 s"):
        compiled(prompts=[{"end": 3.0}, {"start": 5.0}])


def test_names_paths_and_workers_are_in_no_key() -> None:
    renamed = [{"op": "encode", "name": "vae"}, *make_stages()[1:]]
    before = compiled()
    after = compiled(stages=renamed, name="other", output={"uri": "/elsewhere/x.mp4"})
    assert keys(before, "encode") == {chunk.key for chunk in after.by_name["vae"].chunks}
    assert keys(before, "encode_video") == keys(after, "encode_video")


@pytest.mark.parametrize("numerics", [{"threads": 1}, {"micro_batch": 4}, {"dtype": "float16"}])
def test_numerics_profile_is_in_every_model_stage(numerics: dict[str, Any]) -> None:
    difference = changed(compiled(), compiled(numerics=numerics))
    assert all(difference[name] for name in STAGES)


def test_digest_of_the_source_is_in_every_key() -> None:
    facts = make_facts()
    other = facts.model_copy(update={"source": facts.source.model_copy(update={"digest": "else"})})
    assert all(changed(compiled(facts), compiled(other)).values())


def test_motion_adapter_of_another_digest_spares_what_does_not_use_it() -> None:
    facts = make_facts()
    models = facts.models | {"video": make_model("video", "other")}
    difference = changed(compiled(facts), compiled(facts.model_copy(update={"models": models})))
    assert difference["encode"] == 0
    assert difference["invert"] == difference["fuse"] > 0


def test_seed_is_in_the_keys_of_stages_that_draw_noise() -> None:
    noisy = [{"op": "encode"}, {"op": "invert", "num_inference_steps": 4, "noise_start": 1}]
    before = compiled(stages=noisy, output=None, seed=1)
    after = compiled(stages=noisy, output=None, seed=2)
    assert keys(before, "encode") == keys(after, "encode")
    assert not keys(before, "invert") & keys(after, "invert")
    assert changed(compiled(seed=1), compiled(seed=2))["fuse"] == 0


def test_redo_changes_its_frames_and_leaves_records_of_others_alone() -> None:
    redone = [{"frames": [32, 64], "overrides": ["stages.fuse.alpha=0.1"]}]
    before, after = compiled(), compiled(redo=redone)
    fuse = after.by_name["fuse"]
    inside = [chunk for chunk in fuse.chunks if chunk.start >= 32 and chunk.stop <= 64]
    assert inside
    assert all(chunk.variant == 1 for chunk in inside)
    assert keys(before, "encode") == keys(after, "encode")
    assert fuse.variants[0].key == before.by_name["fuse"].key


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 120), st.integers(1, 40), st.integers(2, 20))
def test_every_read_names_chunks_that_hold_all_frames(
    num_frames: int, chunk_frames: int, size: int
) -> None:
    plan = compiled(make_facts(num_frames), chunks={"frames": chunk_frames}, windows={"size": size})
    for stage in plan.stages:
        for chunk in stage.chunks:
            for name, read in zip(stage.inputs, chunk.reads, strict=True):
                parts = [plan.by_name[name].chunks[index] for index in read]
                if plan.by_name[name].stored:
                    held = {frame for part in parts for frame in range(part.start, part.stop)}
                    assert held >= set(range(chunk.start, chunk.stop))


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        ([{"op": "invert"}], "needs latents, but 'decode_video' makes frames; put an encode"),
        ([{"op": "encode"}, {"op": "decode"}, {"op": "smooth"}], "needs noise, but 'decode'"),
        ([{"op": "encode", "model": "nope"}], "unknown model 'nope'; the recipe's models are"),
        ([{"op": "encode", "model": "video"}], "is of kind video; model needs image"),
        (
            [
                {"op": "encode"},
                {"op": "invert", "num_inference_steps": 4},
                {"op": "smooth", "num_inference_steps": 8},
            ],
            "num_inference_steps 8 differs from the inversion's 4",
        ),
        (
            [
                {"op": "encode"},
                {"op": "invert", "num_inference_steps": 4},
                FUSE | {"tau": 4},
            ],
            "tau 4 must be smaller than num_inference_steps 4",
        ),
        (
            [
                {"op": "encode"},
                {"op": "invert", "num_inference_steps": 4, "windows": {"size": 8}},
                FUSE,
            ],
            "with another window plan",
        ),
        (
            [{"op": "encode"}, {"op": "invert", "windows": {"size": 64}}],
            "windows.size 64 is more than the 32 frames",
        ),
    ],
)
def test_stages_that_do_not_fit_are_named(stages: list[dict[str, Any]], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        compiled(stages=stages, output=None)


def test_output_of_latents_says_how_to_end_a_recipe() -> None:
    with pytest.raises(RecipeError, match="end with a decode stage"):
        compiled(stages=[{"op": "encode"}])


def test_output_equal_to_the_source_is_refused() -> None:
    with pytest.raises(RecipeError, match="is the source"):
        compiled(output={"uri": "/clips/clip.mp4"})


def test_cut_without_frames_is_refused() -> None:
    with pytest.raises(RecipeError, match="no frame between 60 s"):
        compiled(source={"uri": "/clips/clip.mp4", "start": 60})


def test_plan_over_its_memory_budget_is_refused() -> None:
    with pytest.raises(ResourceError, match="the limit is 1"):
        compiled(limits={"memory": "1MiB"})


def test_shape_of_latents_is_in_the_key() -> None:
    facts = make_facts()
    models = facts.models | {"image": make_model("image", "image", latent_multiple=4)}
    after = compiled(facts.model_copy(update={"models": models}))
    assert after.by_name["encode"].frame_shape != compiled().by_name["encode"].frame_shape
    assert not keys(after, "encode") & keys(compiled(), "encode")


def test_source_that_gains_weight_is_in_the_key_whatever_it_is_called() -> None:
    def stages(*names: str) -> list[dict[str, Any]]:
        sources = [
            {"model": model, "name": name}
            for model, name in zip(("image", "video"), names, strict=True)
        ]
        return [*make_stages()[:2], FUSE | {"sources": sources, "toward": "a"}, {"op": "decode"}]

    one, other = compiled(stages=stages("a", "b")), compiled(stages=stages("b", "a"))
    assert not keys(one, "fuse") & keys(other, "fuse")


def test_keep_makes_other_frames_and_asks_for_them() -> None:
    kept = compiled(stages=[*make_stages()[:3], {"op": "decode", "keep": True}])
    assert not keys(kept, "decode") & keys(compiled(), "decode")
    assert kept.digest != compiled().digest
    assert find_need(kept, set(), published=True)["decode"]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("stages.invert.num_inference_steps=6", "num_inference_steps cannot differ"),
        ("stages.invert.strength=0.5", "strength cannot differ"),
        ("stages.invert.windows.size=8", "windows cannot differ"),
        ("stages.decode.keep=true", "keep cannot differ"),
        ("stages.encode.model=control", "is of kind controlnet"),
        ("stages.decode.model=nope", "unknown model"),
        ("stages.fuse.tau=90", "tau 90 must be smaller"),
    ],
)
def test_redo_changes_values_only(override: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        compiled(redo=[{"frames": [32, 64], "overrides": [override]}])


def test_two_image_models_need_a_schedule_that_fits() -> None:
    sources = [{"model": "image", "name": "a"}, {"model": "image", "name": "b"}]
    stages = [*make_stages()[:2], FUSE | {"sources": sources}, {"op": "decode"}]
    with pytest.raises(RecipeError, match="toward_video needs a video model"):
        compiled(stages=stages)


def test_plan_over_its_disk_budget_is_refused() -> None:
    with pytest.raises(ResourceError, match="in the store"):
        compiled(limits={"disk": "1KiB"})


def test_two_inversions_feed_one_mix() -> None:
    stages = [
        {"op": "encode"},
        {"op": "invert", "name": "by_image", "model": "image", "num_inference_steps": 4},
        {"op": "invert", "name": "by_video", "num_inference_steps": 4, "inputs": ["encode"]},
        {"op": "mix", "inputs": ["by_image", "by_video"]},
        {"op": "smooth"},
        {"op": "decode"},
    ]
    plan = compiled(stages=stages)
    assert plan.by_name["by_image"].unit == "frames"
    assert plan.by_name["mix"].unit == "windows"
    assert plan.by_name["smooth"].variants[0].params["num_inference_steps"] == 4


def test_upsampling_doubles_the_output() -> None:
    stages = [{"op": "encode"}, {"op": "upsample"}, {"op": "decode"}]
    plan = compiled(stages=stages)
    assert plan.by_name["upsample"].frame_shape == (4, 12, 16)
    assert plan.by_name["decode"].frame_shape == (96, 128, 3)


def test_high_bit_depth_stays_unless_an_8_bit_format_is_asked_for() -> None:
    facts = make_facts(info=make_info(bit_depth=10))
    assert compiled(facts).by_name["decode"].dtype == "uint16"
    eight = compiled(facts, output={"uri": "/out/x.mp4", "pix_fmt": "yuv420p"})
    assert eight.by_name["decode"].dtype == "uint8"
    assert any("10 bits" in warning for warning in eight.warnings)


def test_interlaced_source_is_named_or_refused() -> None:
    facts = make_facts(info=make_info(interlaced=True))
    assert any("interlaced" in warning for warning in compiled(facts).warnings)
    with pytest.raises(RecipeError, match="is interlaced"):
        compiled(facts, source={"uri": "/clips/clip.mp4", "interlaced": "refuse"})


def make_stages() -> list[dict[str, Any]]:
    return [{"op": "encode"}, {"op": "invert", "num_inference_steps": 4}, FUSE, {"op": "decode"}]


def test_recipe_survives_a_round_trip_through_its_plan() -> None:
    plan = compiled(redo=[{"frames": [0, 8], "seed": 3, "overrides": ["stages.fuse.alpha=0.1"]}])
    text = plan.model_dump_json()
    assert Plan.model_validate_json(text).model_dump_json() == text
    assert isinstance(plan.recipe, Recipe)


def test_no_window_crosses_a_scene_cut() -> None:
    facts = make_facts(64)
    source = facts.source.model_copy(update={"cuts": (21, 40)})
    plan = compile_plan(make_recipe(), facts.model_copy(update={"source": source}))
    spans = [(chunk.start, chunk.stop) for chunk in plan.by_name["fuse"].chunks]
    assert not [(a, b) for a, b in spans for cut in (21, 40) if a < cut < b]
    assert {frame for a, b in spans for frame in range(a, b)} == set(range(64))
    whole = compile_plan(make_recipe(), facts)
    assert plan.by_name["encode"].chunks == whole.by_name["encode"].chunks


def test_scene_cuts_may_be_given_as_moments() -> None:
    plan = compile_plan(make_recipe(windows={"scenes": [2.1, "00:00:04"]}), make_facts(64))
    starts = {chunk.start for chunk in plan.by_name["fuse"].chunks}
    assert {21, 40} <= starts
    assert plan.by_name["fuse"].variants[0].fields["windows"].keys() == {
        "size",
        "overlap",
        "mode",
        "weights",
    }
