"""Side inputs: what is known of them, how they fit the source, and what their keys hold."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentloom.errors import MediaError, PolicyError, RecipeError
from latentloom.flows.compile import compile_plan
from latentloom.flows.map_facts import map_digest, map_facts
from latentloom.media.images import list_images, read_images
from latentloom.schemas.conditions import MapInput
from latentloom.schemas.facts import MapFacts
from latentloom.schemas.load import load_recipe
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from tests.facts import make_facts, make_recipe

INPAINT = {"op": "edit", "kind": "inpaint", "mask": "mask"}
CANNY = {"kind": "canny"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def save(path: Path, *, width: int = 8, height: int = 6, value: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def make_map(**changes: Any) -> MapFacts:
    fields: dict[str, Any] = {
        "uri": "/maps/mask.png",
        "path": "/maps/mask.png",
        "digest": "digest-of-mask",
        "width": 64,
        "height": 48,
        "num_frames": 1,
    }
    return MapFacts(**(fields | changes))


def compile_with(stage: dict[str, Any], mask: MapFacts, **changes: Any) -> Plan:
    recipe = make_recipe(stages=[stage], maps={"mask": {"uri": mask.uri}}, **changes)
    return compile_plan(recipe, make_facts(maps={"mask": mask}))


def test_image_is_one_frame_and_folder_has_one_for_each_image(tmp_path: Path, store: Store) -> None:
    image = map_facts("a", MapInput(uri=str(save(tmp_path / "one.png"))), store)
    for name in ("b.png", "a.jpg", "c.txt"):
        save(tmp_path / "many" / name.replace("txt", "png"))
    (tmp_path / "many" / "notes.txt").write_text("no image")
    folder = map_facts("b", MapInput(uri=str(tmp_path / "many")), store)
    assert [(f.width, f.height, f.num_frames) for f in (image, folder)] == [(8, 6, 1), (8, 6, 3)]
    assert [path.name for path in list_images(tmp_path / "many")] == ["a.jpg", "b.png", "c.png"]


def test_images_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        save(tmp_path / "many" / f"{index}.png", value=index * 100)
    read = read_images(list_images(tmp_path / "many"), width=8, height=6, fit="stretch")
    assert read[:, 0, 0, 0].tolist() == [0, 100, 200]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "I;16"])
def test_every_kind_of_picture_keeps_its_grey(tmp_path: Path, mode: str) -> None:
    levels = np.tile(np.array([0, 255], np.uint8), (6, 4))
    wide = Image.fromarray(levels.astype(np.uint16) * 257)
    (wide if mode == "I;16" else Image.fromarray(levels).convert(mode)).save(tmp_path / "a.png")
    read = read_images([tmp_path / "a.png"], width=8, height=6, fit="stretch")
    assert np.array_equal(read[0], np.repeat(levels[..., None], 3, axis=-1))


def test_folder_of_several_sizes_or_none_is_refused(tmp_path: Path, store: Store) -> None:
    save(tmp_path / "many" / "a.png")
    save(tmp_path / "many" / "b.png", width=9)
    with pytest.raises(MediaError, match=r"b\.png is 9x6, but a\.png is 8x6"):
        map_facts("a", MapInput(uri=str(tmp_path / "many")), store)
    (tmp_path / "none").mkdir()
    with pytest.raises(MediaError, match="holds no image"):
        map_facts("a", MapInput(uri=str(tmp_path / "none")), store)


def test_missing_map_names_its_field(tmp_path: Path, store: Store) -> None:
    with pytest.raises(MediaError, match=r"nowhere\.png; check maps\.depth\.uri"):
        map_facts("depth", MapInput(uri=str(tmp_path / "nowhere.png")), store)


def test_digest_follows_the_content_of_a_folder(tmp_path: Path, store: Store) -> None:
    save(tmp_path / "many" / "a.png")
    facts = map_facts("a", MapInput(uri=str(tmp_path / "many")), store)
    assert map_digest(facts, store) == facts.digest
    save(tmp_path / "many" / "a.png", value=200)
    assert map_digest(facts, store) != facts.digest
    shutil.rmtree(tmp_path / "many")
    with pytest.raises(MediaError, match=r"no folder .*many"):
        map_digest(facts, store)


def test_maps_are_confined_like_the_source(tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "r.yaml"
    recipe.parent.mkdir()
    text = "version: 1\nsource: {uri: clip.mp4}\nmaps: {mask: {uri: %s}}\nstages: [{op: encode}]\n"
    recipe.write_text(text % "mask.png")
    assert load_recipe(recipe).maps["mask"].uri == str(tmp_path / "recipes" / "mask.png")
    recipe.write_text(text % "../mask.png")
    with pytest.raises(PolicyError, match=r"maps\.mask\.uri"):
        load_recipe(recipe)
    assert load_recipe(recipe, ["maps.mask.uri=/elsewhere/mask.png"]).maps["mask"].uri == (
        "/elsewhere/mask.png"
    )


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (INPAINT, {"num_frames": 99}, r"map 'mask' has 99 frames, the source 100"),
        (INPAINT, {"width": 100}, r"map 'mask' is 100x48; the source is 64x48 and is edited at 64"),
        (INPAINT | {"mask": "other"}, {}, r"unknown map 'other'; the recipe's maps are: mask"),
        (INPAINT | {"model": "control"}, {}, r"kind controlnet; model needs image or inpaint"),
    ],
)
def test_map_that_does_not_fit_is_refused(
    stage: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        compile_with(stage, make_map(**changes))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"kind": "img2img", "mask": "mask"}, r"stages\[0\]\.mask: unknown field"),
        ({"kind": "frames", "map": "mask", "strength": 0.5}, r"strength: unknown field"),
        ({"kind": "controlnet"}, r"stages\[0\]\.controlnet: field required"),
        ({"kind": "controlnet", "controlnet": {"kind": "depth"}}, r"kind depth .* name a map"),
        (
            {"kind": "controlnet", "controlnet": CANNY | {"low_threshold": 200}},
            "low_threshold 200 must be smaller than high_threshold 200",
        ),
        (
            {"kind": "controlnet", "controlnet": CANNY | {"map": "mask", "low_threshold": 50}},
            "no map",
        ),
        (
            {"kind": "controlnet", "controlnet": CANNY | {"kind": "edges", "high_threshold": 300}},
            "are for kind canny made from",
        ),
        ({"kind": "outpaint"}, "no border"),
        ({"kind": "inpait"}, r"did you mean inpaint\?"),
    ],
)
def test_field_of_another_editor_is_refused(stage: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(stages=[{"op": "edit"} | stage])


def test_map_is_in_the_key_by_content_and_not_by_name() -> None:
    first = compile_with(INPAINT, make_map())
    renamed = compile_with(INPAINT, make_map(uri="/other.png", path="/other.png"))
    other = compile_with(INPAINT, make_map(digest="another"))
    assert first.by_name["edit"].key == renamed.by_name["edit"].key
    assert first.by_name["edit"].key != other.by_name["edit"].key
    assert first.by_name["decode_video"].key == other.by_name["decode_video"].key


@pytest.mark.parametrize(
    ("mask", "fit"),
    [({"width": 128, "height": 96}, "cover"), ({"width": 32, "height": 32}, "stretch")],
)
def test_map_is_cropped_as_the_source_or_is_the_edited_frame(mask: Any, fit: str) -> None:
    source = {"uri": "/clips/clip.mp4", "size": {"width": 32, "height": 32}}
    plan = compile_with(INPAINT, make_map(**mask), source=source)
    fields = plan.by_name["edit"].variants[0].fields["maps"]["mask"]
    assert (fields["size"], fields["fit"]) == ([32, 32], fit)


def test_thresholds_are_in_the_key_of_canny_that_is_made_and_of_nothing_else() -> None:
    def control(**use: Any) -> dict[str, Any]:
        stage = {"op": "edit", "kind": "controlnet", "controlnet": use}
        variant = compile_with(stage, make_map()).by_name["edit"].variants[0]
        params: dict[str, Any] = variant.fields["params"]["controlnet"][0]
        return params | {"key": variant.key}

    made, other = control(**CANNY), control(**CANNY, low_threshold=50)
    assert made["key"] != other["key"]
    assert (other["low_threshold"], other["high_threshold"]) == (50, 200)
    assert control(**CANNY, low_threshold=100, high_threshold=200) == made
    for use in ({"kind": "edges"}, CANNY | {"map": "mask"}):
        assert not {"low_threshold", "high_threshold"} & set(control(**use))


def test_outpainted_frame_is_larger_for_all_that_follows() -> None:
    recipe = make_recipe(
        stages=[
            {"op": "edit", "kind": "outpaint", "left": 8, "bottom": 16},
            {"op": "encode"},
            {"op": "decode"},
        ]
    )
    plan = compile_plan(recipe, make_facts())
    assert plan.by_name["edit"].frame_shape == (64, 72, 3)
    assert plan.by_name["encode"].frame_shape == (4, 8, 9)
    assert plan.by_name["encode_video"].variants[0].fields["size"] == [64, 72]


def test_source_of_fuse_with_a_map_reads_no_source_frames() -> None:
    def inputs(control: dict[str, Any]) -> tuple[str, ...]:
        sources = [{"model": "image", "controlnet": control}, {"model": "video"}]
        stages = [
            {"op": "encode"},
            {"op": "invert", "num_inference_steps": 4},
            {"op": "fuse", "tau": 2, "sources": sources},
        ]
        recipe = make_recipe(stages=stages, maps={"mask": {"uri": "/m.png"}}, output=None)
        plan = compile_plan(recipe, make_facts(maps={"mask": make_map()}))
        return plan.by_name["fuse"].inputs

    assert inputs({}) == ("invert", "decode_video")
    assert inputs(CANNY) == ("invert", "decode_video")
    assert inputs({"kind": "depth", "map": "mask"}) == ("invert",)
