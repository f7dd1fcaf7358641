"""Scenes are drawn from seeds, and edits change what they say and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import pytest

from latentloom.sprites.scene import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    STYLES,
    Motion,
    MotionKind,
    Scene,
    Sprite,
    change_background,
    insert,
    random_scene,
    recolour,
    remove,
    reshape,
    restyle,
)


def test_a_seed_names_one_scene() -> None:
    assert random_scene(5) == random_scene(5)
    assert random_scene(5) != random_scene(6)
    assert pickle.loads(pickle.dumps(random_scene(5))) == random_scene(5)


def test_every_attribute_is_drawn() -> None:
    scenes = [random_scene(seed) for seed in range(150)]
    sprites = [scene.sprites[0] for scene in scenes]
    assert {sprite.shape for sprite in sprites} == set(SHAPES)
    assert {sprite.colour for sprite in sprites} == set(COLOURS)
    assert {sprite.style for sprite in sprites} == set(STYLES)
    assert {sprite.motion.kind for sprite in sprites} == set(MOTIONS)
    assert {scene.background.kind for scene in scenes} == set(BACKGROUNDS)


def test_the_world_is_as_large_as_promised() -> None:
    assert len(SHAPES) >= 4
    assert len(COLOURS) >= 6
    assert len(STYLES) >= 2
    assert len(MOTIONS) >= 4
    assert len(BACKGROUNDS) >= 4


@pytest.mark.parametrize("kind", MOTIONS)
def test_a_sprite_never_leaves_the_picture(kind: MotionKind) -> None:
    for seed in range(20):
        sprite = random_scene(seed).sprites[0]
        sprite = dataclasses.replace(sprite, motion=dataclasses.replace(sprite.motion, kind=kind))
        for tick in range(200):
            x, y = sprite.position(tick / 8)
            assert sprite.size <= min(x, y)
            assert max(x, y) <= 1 - sprite.size


@pytest.mark.parametrize("kind", [kind for kind in MOTIONS if kind != "still"])
def test_what_moves_moves_smoothly(kind: MotionKind) -> None:
    sprite = Sprite("circle", "red", motion=Motion(kind, heading=(0.2, 0.1)))
    path = [sprite.position(tick / 100) for tick in range(300)]
    steps = [abs(x1 - x0) + abs(y1 - y0) for (x0, y0), (x1, y1) in itertools.pairwise(path)]
    assert sum(steps) > 0.2
    assert max(steps) < 0.02


def test_an_edit_changes_one_thing() -> None:
    scene = random_scene(3)
    sprite = scene.sprites[0]
    assert recolour(scene, "cyan").sprites == (dataclasses.replace(sprite, colour="cyan"),)
    assert reshape(scene, "star").sprites == (dataclasses.replace(sprite, shape="star"),)
    assert restyle(scene, "outlined").sprites == (dataclasses.replace(sprite, style="outlined"),)
    assert change_background(scene, "dotted").sprites == scene.sprites
    assert change_background(scene, "dotted").background.shift == scene.background.shift


def test_what_is_inserted_can_be_removed() -> None:
    scene, other = random_scene(3), Sprite("star", "blue")
    assert insert(scene, other).sprites == (*scene.sprites, other)
    assert remove(insert(scene, other), index=1) == scene
    assert remove(scene) == Scene((), scene.background)
