"""Texts that a model cannot read are told of while planning."""

from __future__ import annotations

from typing import Any

import pytest

from latentloom.errors import RecipeError
from latentloom.flows.compile import compile_plan
from latentloom.flows.texts import recipe_texts
from latentloom.schemas.facts import Facts
from latentloom.schemas.plan import Plan
from tests.facts import make_facts, make_model, make_recipe

PAIR = {"op": "edit", "kind": "prompt2prompt", "keep": True}


def with_dropped(ends: dict[str, str]) -> Facts:
    models = {name: make_model("image", name, dropped=ends) for name in ("image", "control")}
    models |= {name: make_model("video", name) for name in ("video", "upsample")}
    return make_facts(models=models)


def edited(*, facts: Facts | None = None, **changes: Any) -> Plan:
    stages = [PAIR | changes.pop("stage", {})]
    recipe = make_recipe(stages=stages, **{"output": None} | changes)
    return compile_plan(recipe, facts or make_facts())


def test_text_with_an_end_that_is_not_read_is_warned_of_once() -> None:
    facts = with_dropped({"a blue car": "car", "nobody uses this": "this"})
    assert edited(facts=facts).warnings == (
        "stage 'edit': model 'image' has no room for the end of a prompt: 'car'; shorten it",
    )
    assert edited().warnings == ()


def test_texts_of_each_source_of_a_fuse_stage_are_checked_with_its_model() -> None:
    stages = make_recipe().stages
    facts = with_dropped({"a blue car": "a blue car"})
    facts = facts.model_copy(
        update={"models": facts.models | {"control": make_model("controlnet", "control")}}
    )
    plan = compile_plan(make_recipe(stages=[s.model_dump() for s in stages]), facts)
    assert [warning.split("'")[3] for warning in plan.warnings] == ["image"]


def test_texts_of_redo_ranges_are_among_a_recipes() -> None:
    redo = [{"frames": [0, 10], "overrides": ["prompts.target=a green car"]}]
    assert recipe_texts(make_recipe(redo=redo)) == ["a red car", "a blue car", "", "a green car"]


def test_replacing_needs_as_many_words() -> None:
    prompts = {"source": "a red car", "target": "a very red car"}
    with pytest.raises(RecipeError, match=r"'a red car' has 3 .* has 4; .*refine"):
        edited(prompts=prompts)
    edited(prompts=prompts, stage={"mode": "refine"})


def test_every_entry_of_the_prompts_is_checked() -> None:
    entries = [{"source": "a", "target": "b"}, {"start": 5.0, "source": "a", "target": "b c"}]
    with pytest.raises(RecipeError, match="'a' has 1 and 'b c' has 2"):
        edited(prompts=entries)


def test_words_must_be_in_their_prompts() -> None:
    stage = {"equalizer": {"red": 2.0, "Blue,": 2.0}, "local_blend": {"words": ["red", "dog"]}}
    with pytest.raises(RecipeError) as caught:
        edited(stage=stage)
    text = str(caught.value)
    assert "equalizer: 'red' is no word of 'a blue car'" in text
    assert "local_blend.words: 'dog' is a word of neither 'a red car' nor 'a blue car'" in text
    assert "'Blue,'" not in text


def test_source_prompt_is_what_makes_a_chunk() -> None:
    before = edited(prompts={"source": "a red car", "target": "a blue car"})
    after = edited(prompts={"source": "a big car", "target": "a blue car"})
    assert before.by_name["edit"].key == after.by_name["edit"].key
    assert not {c.key for c in before.by_name["edit"].chunks} & {
        c.key for c in after.by_name["edit"].chunks
    }
    other = edited(stage={"prompt": "source", "source_prompt": "target"})
    assert other.by_name["edit"].timed[0]["source"] == "a blue car"


def test_prompt2prompt_draws_no_noise() -> None:
    keys = {edited(seed=seed).by_name["edit"].key for seed in (1, 2)}
    assert len(keys) == 1


def test_wrong_model_for_an_instruction_is_refused_with_its_channels() -> None:
    stage = {"op": "edit", "kind": "instruct_pix2pix", "model": "image", "keep": True}
    with pytest.raises(RecipeError, match=r"kind image .* 4 channels .*model needs instruct"):
        compile_plan(make_recipe(stages=[stage], output=None), make_facts())
    facts = make_facts(models={"image": make_model("instruct", "image", in_channels=8, base=None)})
    with pytest.raises(RecipeError, match=r"kind instruct .* 8 channels for 4-channel latents"):
        edited(facts=facts)


def test_both_guidances_of_an_instruction_need_the_negative_prompt() -> None:
    models = {"instruct": make_model("instruct", "instruct", base=None)}
    facts = make_facts(models=make_facts().models | models)

    def timed(**scales: float) -> dict[str, Any]:
        stage = {"op": "edit", "kind": "instruct_pix2pix", "keep": True, **scales}
        models = {"instruct": {"path": "embedded:sprites/instruct"}}
        recipe = make_recipe(stages=[stage], models=models, output=None)
        return compile_plan(recipe, facts).by_name["edit"].timed[0]

    assert "negative" in timed()
    assert "negative" in timed(guidance_scale=1.0)
    assert "negative" in timed(image_guidance_scale=1.0)
    assert "negative" not in timed(guidance_scale=1.0, image_guidance_scale=1.0)
