"""Captions use a small vocabulary and name what is asked for."""

from __future__ import annotations

import pytest

from latentloom.sprites.caption import caption
from latentloom.sprites.scene import Background, Motion, Scene, Sprite, random_scene, recolour

SCENE = Scene(
    (Sprite("star", "blue", "outlined", motion=Motion("swing")),), Background("checkered")
)


def test_a_full_caption_names_everything() -> None:
    assert caption(SCENE) == "a blue outlined star swings over a checkered background"


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("style", "a blue star swings over a checkered background"),
        ("motion", "a blue outlined star over a checkered background"),
        ("background", "a blue outlined star swings"),
    ],
)
def test_a_part_can_be_left_out(left_out: str, expected: str) -> None:
    assert caption(SCENE, **{left_out: False}) == expected


def test_an_edited_scene_is_captioned_by_what_it_became() -> None:
    assert caption(recolour(SCENE, "red")) == caption(SCENE).replace("blue", "red")


def test_several_sprites_and_none() -> None:
    two = Scene((*SCENE.sprites, Sprite("circle", "red")))
    assert caption(two, motion=False, background=False) == (
        "a blue outlined star and a red filled circle"
    )
    assert caption(Scene(())) == "nothing over a plain background"


def test_the_vocabulary_is_small() -> None:
    words = {word for seed in range(200) for word in caption(random_scene(seed)).split()}
    assert len(words) <= 32
