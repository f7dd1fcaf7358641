"""Recipes from files: every fault at once, each with its line and what to do."""

from __future__ import annotations

import pickle
import time
from itertools import pairwise
from pathlib import Path

import pytest

from latentloom.errors import PolicyError, RecipeError, UsageError
from latentloom.schemas.base import parse_seconds
from latentloom.schemas.fusion import FuseStage
from latentloom.schemas.load import load_recipe, with_overrides

GOOD = """\
version: 1
source: {uri: clip.mp4}
models:
  image: {path: "embedded:sprites/image"}
prompts: {source: a, target: b}
stages:
  - {op: encode}
  - op: invert
    model: image
    num_inference_steps: 20
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def faults(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    return [fault.replace(str(folder) + "/", "") for fault in caught.value.faults]


def test_good_recipe_loads_with_absolute_paths(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.source.uri == str(tmp_path / "clip.mp4")
    assert [stage.name for stage in recipe.stages] == ["encode", "invert"]
    assert recipe.prompts[0].target == "b"


def test_all_faults_come_at_once_with_their_lines(tmp_path: Path) -> None:
    text = GOOD.replace("source: a", "sorce: a").replace(
        "num_inference_steps", "num_inference_step"
    )
    text = text.replace("{op: encode}", "{op: encode, name: invert}")
    assert faults(tmp_path, text + "seed: many\n") == [
        "recipe.yaml:5: prompts.sorce: unknown field; did you mean source?",
        "recipe.yaml:11: seed: input should be a valid integer, unable to parse string as an"
        " integer, got 'many'",
        "recipe.yaml:10: stages[1].num_inference_step: unknown field;"
        " did you mean num_inference_steps?",
        "recipe.yaml:8: stages[1].name: duplicate stage name 'invert';"
        " give one of them another name",
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("version: 1", "version: 2", "recipe.yaml:1: version: input should be 1, got 2"),
        ("op: invert", "op: revert", "stages[1]: op 'revert' is not known; did you mean invert?"),
        ("{op: encode}", "{op: edit, kind: imgimg}", "stages[0]: kind 'imgimg' is not known; did"),
        (
            "{op: encode}",
            "{op: edit, strenth: 1}",
            "stages[0].strenth: unknown field; did you mean",
        ),
        ("{op: encode}", "{name: a}", "stages[0]: op is missing"),
        ("{op: encode}", "{op: encode, inputs: [x]}", "stages[0].inputs: unknown input 'x'"),
        ("{uri: clip.mp4}", "{uri: a, start: 9, end: 5}", "end 5 s must lie after start 9 s"),
        ("{uri: clip.mp4}", "{uri: a, end: 9, duration: 5}", "give end or duration, not both"),
        ('{path: "embedded:sprites/image"}', "{}", "give exactly one of path and repo_id"),
        ("{op: encode}", "{op: encode, name: encode_video}", "is taken by the system"),
        ("source: {uri", "source: {uri: [", "not YAML"),
        ("{uri: clip.mp4}", "{uri: a, end: .inf}", "source.end: expected a time of at most"),
        ("{uri: clip.mp4}", "{uri: a, start: .nan}", "source.start: expected a time of at most"),
        ("{uri: clip.mp4}", "{uri: a, end: 1e300}", "source.end: expected a time of at most"),
        ("version: 1", "version: 1\nseed: .inf", "seed: input should be a finite number, got inf"),
        ("version: 1", "version: 1\nlimits: {memory: .inf}", "limits.memory: could not parse"),
        ('image"}', 'image", subfolder: ../x}', "models.image.subfolder: '../x' leaves the model"),
        ('image"}', 'image", subfolder: /x}', "models.image.subfolder: '/x' leaves the model"),
        (
            'image"}',
            'image", loras: [{path: a, subfolder: ../x}]}',
            "models.image.loras[0].subfolder: '../x' leaves the model",
        ),
        ('image"}', 'image", loras: [{scale: 1}]}', "give exactly one of path and repo_id"),
        ('image"}', 'image", loras: [{path: a, scales: 1}]}', "unknown field; did you mean scale?"),
        ("clip.mp4", '"a\\0b"', "source.uri: holds a NUL character"),
    ],
)
def test_each_fault_says_where_and_what(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert any(fault in line for line in faults(tmp_path, GOOD.replace(old, new)))


def test_windows_that_overlap_whole_and_tau_past_the_end_are_faults(tmp_path: Path) -> None:
    fuse = "  - {op: fuse, tau: 20, num_inference_steps: 20, sources: [{model: a}, {model: b}]}\n"
    text = GOOD + fuse + "windows: {size: 8, overlap: 8}\n"
    assert faults(tmp_path, text) == [
        "recipe.yaml:12: windows: overlap 8 must be smaller than size 8",
        "recipe.yaml:11: stages[2]: tau 20 must be smaller than num_inference_steps 20",
    ]


def test_missing_file_is_one_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_deep_nesting_is_refused_not_a_crash(tmp_path: Path) -> None:
    assert "nested deeper" in faults(tmp_path, "a: " + "[" * 2000 + "]" * 2000)[0]


@pytest.mark.parametrize("number", [".inf", ".nan", "-.inf"])
def test_tau_that_is_no_number_of_steps_is_a_fault(tmp_path: Path, number: str) -> None:
    fuse = f"  - {{op: fuse, tau: {number}, sources: [{{model: a}}, {{model: b}}]}}\n"
    assert "stages[2].tau: input should be a finite number" in faults(tmp_path, GOOD + fuse)[0]


def test_aliases_are_read(tmp_path: Path) -> None:
    text = GOOD.replace("{source: a, target: b}", "{source: &text a, target: *text}")
    assert load_recipe(write(tmp_path, text)).prompts[0].target == "a"


def test_aliases_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, after in pairwise("abcdefghijkl"):
        text += f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    begun = time.monotonic()
    assert faults(tmp_path, text) == ["recipe.yaml:5: nested deeper or longer than a recipe may be"]
    assert time.monotonic() - begun < 2


def test_aliases_that_nest_are_refused(tmp_path: Path) -> None:
    text = "a0: &a0 x\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(50))
    assert "nested deeper" in faults(tmp_path, text)[0]


def test_alias_of_what_it_lies_in_is_refused(tmp_path: Path) -> None:
    assert faults(tmp_path, "version: 1\nstages: &a [*a]\n") == [
        "recipe.yaml:2: alias *a stands for what it lies in"
    ]


def test_huge_file_is_refused(tmp_path: Path) -> None:
    assert "more than a recipe may have" in faults(tmp_path, "a: " + "x" * (1 << 20))[0]


def test_override_addresses_a_stage_by_name(tmp_path: Path) -> None:
    overrides = ["stages.invert.num_inference_steps=5", "prompts.target=a=b", "seed=3"]
    recipe = load_recipe(write(tmp_path, GOOD), overrides)
    assert recipe.stages[1].model_dump()["num_inference_steps"] == 5
    assert recipe.prompts[0].target == "a=b"
    assert recipe.seed == 3


def test_override_with_a_wrong_value_is_named_as_override(tmp_path: Path) -> None:
    found = faults(tmp_path, GOOD, "stages.invert.num_inference_steps=0")
    assert found[0].startswith("override: stages[1].num_inference_steps: ")


@pytest.mark.parametrize("text", ["seed", "stages.none.alpha=1", "=4"])
def test_override_without_a_place_is_a_usage_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="override"):
        load_recipe(write(tmp_path, GOOD), [text])


def test_paths_in_a_file_are_confined_and_those_of_the_command_line_are_not(
    tmp_path: Path,
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    text = GOOD.replace("clip.mp4", str(outside / "clip.mp4"))
    with pytest.raises(PolicyError, match="lies outside"):
        load_recipe(write(inside, text))
    uri = f"source.uri={outside / 'clip.mp4'}"
    assert load_recipe(write(inside, text), [uri]).source.uri == str(outside / "clip.mp4")
    assert load_recipe(write(inside, text), roots=[outside]).source.uri.startswith(str(outside))


def test_loras_are_confined_like_other_paths(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    text = GOOD.replace('image"}', 'image", loras: [{path: a.safetensors}]}')
    near = load_recipe(write(inside, text)).models["image"].loras
    assert [lora.path for lora in near] == [str(inside / "a.safetensors")]
    with pytest.raises(PolicyError, match=r"models\.image\.loras\.0\.path: .*lies outside"):
        load_recipe(write(inside, text.replace("a.safe", f"{outside}/a.safe")))
    for override in (
        f"models.image.loras.0.path={outside}/a.safetensors",
        f"models.image.loras=[{{path: {outside}/a.safetensors}}]",
    ):
        given = load_recipe(write(inside, text), [override]).models["image"].loras
        assert [lora.path for lora in given] == [str(outside / "a.safetensors")]


def test_path_that_climbs_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    with pytest.raises(PolicyError):
        load_recipe(write(tmp_path / "inside", GOOD.replace("clip.mp4", "../../../../clip.mp4")))


@pytest.mark.parametrize(
    "uri", ["file:///etc/passwd", "FILE:///etc/passwd", "file:///etc%2Fpasswd"]
)
def test_file_uri_is_confined_like_a_path(tmp_path: Path, uri: str) -> None:
    with pytest.raises(PolicyError, match=r"source\.uri: /etc/passwd lies outside"):
        load_recipe(write(tmp_path, GOOD.replace("clip.mp4", uri)))
    recipe = load_recipe(write(tmp_path, GOOD.replace("clip.mp4", f"file://{tmp_path}/clip.mp4")))
    assert recipe.source.uri == str(tmp_path / "clip.mp4")


def test_remote_source_is_left_to_the_fetcher(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace("clip.mp4", "s3://bucket/clip.mp4")))
    assert recipe.source.uri == "s3://bucket/clip.mp4"


def test_embedded_means_something_for_models_only(tmp_path: Path) -> None:
    text = GOOD + "output: {uri: embedded:out.mp4}\n"
    recipe = load_recipe(write(tmp_path, text.replace("clip.mp4", "embedded:clip.mp4")))
    assert recipe.models["image"].path == "embedded:sprites/image"
    assert recipe.source.uri == str(tmp_path / "embedded:clip.mp4")
    assert recipe.output is not None
    assert recipe.output.uri == str(tmp_path / "embedded:out.mp4")
    for field in ("source.uri", "output.uri"):
        wrong = text.replace(
            "clip.mp4" if field == "source.uri" else "embedded:out.mp4",
            "embedded:/../../../../../etc/passwd",
        )
        with pytest.raises(PolicyError, match=field):
            load_recipe(write(tmp_path, wrong))


def test_links_are_followed_before_a_path_is_judged(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside / "real", outside / "sub"):
        folder.mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    (inside / "near").symlink_to(inside / "real")
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "real" / "sub").symlink_to(outside / "sub")
    near = load_recipe(write(inside, GOOD.replace("clip.mp4", "near/clip.mp4")))
    assert near.source.uri == str(inside / "real" / "clip.mp4")
    embedded = '"embedded:sprites/image"'
    for text in (
        GOOD.replace("clip.mp4", "link/clip.mp4"),
        GOOD.replace("clip.mp4", "near/../../outside/clip.mp4"),
        GOOD.replace("clip.mp4", "loop/clip.mp4"),
        GOOD.replace(embedded, "link"),
        GOOD.replace(embedded, "near, subfolder: sub"),
        GOOD + "output: {uri: link/out.mp4}\n",
    ):
        with pytest.raises(PolicyError):
            load_recipe(write(inside, text))


@pytest.mark.parametrize("uri", ["s3://b/x.mp4", "x://y.mp4", "simplecache::s3://b/x.mp4"])
def test_remote_output_is_a_fault(tmp_path: Path, uri: str) -> None:
    fault = "output.uri: remote outputs are not written; give a local path"
    text = GOOD + f"output: {{uri: '{uri}'}}\n"
    assert faults(tmp_path, text) == [f"recipe.yaml:11: {fault}"]
    text = GOOD + "output: {uri: out.mp4}\n"
    assert faults(tmp_path, text, f"output.uri={uri}") == [f"override: {fault}"]
    recipe = load_recipe(write(tmp_path, text), [f"output.uri=file://{tmp_path}/o.mp4"])
    assert recipe.output is not None
    assert recipe.output.uri == str(tmp_path / "o.mp4")


def test_overrides_of_a_range_touch_stages_and_prompts_only(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    changed = with_overrides(recipe, ["prompts.target=c"])
    assert changed.prompts[0].target == "c"
    with pytest.raises(UsageError, match="only stages and prompts"):
        with_overrides(recipe, ["source.uri=x"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (2, 2.0),
        ("2.5s", 2.5),
        ("250ms", 0.25),
        ("2m", 120.0),
        ("01:02.5", 62.5),
        ("01:02:03.250", 3723.25),
    ],
)
def test_seconds_are_read_as_people_write_them(text: object, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-1s", "1:2:3:4", True, None, [1], 10**400, "9" * 400, "9" * 5000 + ":00:00"],
)
def test_what_is_no_time_is_a_clear_error(text: object) -> None:
    with pytest.raises(ValueError, match=r"expected (seconds|a time)"):
        parse_seconds(text)


def test_tau_is_a_step_or_a_fraction() -> None:
    sources = [{"model": "a"}, {"model": "b"}]
    stage = FuseStage.model_validate({"op": "fuse", "sources": sources, "tau": 0.3})
    assert stage.first_mixed_step(20) == 6
    stage = FuseStage.model_validate({"op": "fuse", "sources": sources, "tau": 3})
    assert stage.first_mixed_step(20) == 3


def test_recipe_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(RecipeError(["a: b", "c: d"])))
    assert error.faults == ("a: b", "c: d")
    assert str(error) == "a: b\nc: d"
