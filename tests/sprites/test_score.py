"""The score recognises every attribute, and what is wrong with a wrong frame."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from latentloom.sprites.render import render
from latentloom.sprites.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STYLES,
    Background,
    Motion,
    Scene,
    Shape,
    Sprite,
    Style,
    change_background,
    random_scene,
    recolour,
    remove,
    reshape,
    restyle,
)
from latentloom.sprites.score import flicker, look, preserved, score


@pytest.mark.parametrize(("shape", "style"), list(itertools.product(SHAPES, STYLES)))
def test_every_look_is_recognised(shape: Shape, style: Style) -> None:
    for colour, background in itertools.product(COLOURS, BACKGROUNDS):
        scene = Scene(
            (Sprite(shape, colour, style, 0.24),), Background(background, 1.1, (0.3, 0.7))
        )
        seen = look(render(scene, 1)[0])
        assert (seen.shape, seen.style, seen.colour) == (shape, style, colour)
        assert seen.background == background


def test_rendered_clips_are_all_right() -> None:
    for seed in range(15):
        scene = random_scene(seed)
        result = score(render(scene, 4), scene)
        assert result.all_right.all()
        assert result.iou.min() > 0.95
        assert result.background_flicker == 0


def test_noise_and_blur_do_not_confuse_it() -> None:
    rng = np.random.default_rng(0)
    right = []
    for seed in range(20):
        scene = random_scene(seed)
        right.append(score(_damaged(render(scene, 2), rng), scene).all_right)
    assert np.mean(right) > 0.95


def test_each_wrong_attribute_is_named() -> None:
    scene = Scene((Sprite("circle", "red"),), Background("striped"))
    frames = render(scene, 2)
    assert not score(frames, recolour(scene, "blue")).colour_right.any()
    assert not score(frames, reshape(scene, "star")).shape_right.any()
    assert not score(frames, restyle(scene, "outlined")).style_right.any()
    assert not score(frames, change_background(scene, "dotted")).background_right.any()
    assert not score(frames, recolour(scene, "blue")).all_right.any()
    assert score(frames, recolour(scene, "blue")).shape_right.all()


def test_a_sprite_elsewhere_is_not_right() -> None:
    scene = Scene((Sprite("circle", "red", x=0.3),))
    elsewhere = Scene((Sprite("circle", "red", x=0.7),))
    result = score(render(scene, 1), elsewhere)
    assert result.colour_right.all()
    assert not result.all_right.any()


def test_half_a_colour_is_no_colour() -> None:
    scene = Scene((Sprite("square", "red"),))
    frames = render(scene, 1)
    frames[:, :, 32:] = render(recolour(scene, "green"), 1)[:, :, 32:]
    assert look(frames[0]).colour is None
    assert not score(frames, scene).colour_right.any()


def test_an_empty_scene_is_right_when_nothing_is_seen() -> None:
    scene = Scene((), Background("gradient"))
    assert score(render(scene, 2), scene).all_right.all()
    assert not score(render(random_scene(1), 2), scene).all_right.any()


def test_flicker_is_the_mean_change() -> None:
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    frames[1] = 10
    assert flicker(frames) == 10
    assert flicker(render(Scene((Sprite("star", "red"),)), 4)) == 0
    moving = Scene((Sprite("star", "red", motion=Motion("swing")),))
    assert flicker(render(moving, 4)) > 0.5


def test_two_sprites_are_refused() -> None:
    scene = Scene((Sprite("star", "red"), Sprite("star", "blue")))
    with pytest.raises(ValueError, match="at most one sprite"):
        score(render(scene, 1), scene)


def test_frames_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        score(render(random_scene(0), 1)[0], random_scene(0))


def _damaged(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    blurred = frames.astype(np.float64)
    for axis in (1, 2):
        blurred = (np.roll(blurred, 1, axis) + 2 * blurred + np.roll(blurred, -1, axis)) / 4
    return np.clip(blurred + rng.normal(0, 6, frames.shape), 0, 255).astype(np.uint8)


def test_means_are_shares_of_frames() -> None:
    scene = Scene((Sprite("circle", "red", size=0.3),))
    frames = render(scene, 4)
    frames[0] = render(recolour(scene, "blue"), 1)[0]
    means = score(frames, scene).means()
    assert (means["colour"], means["shape"], means["all"]) == (0.75, 1.0, 0.75)
    assert means["flicker"] == flicker(frames) > 0


def test_what_an_edit_should_leave_alone() -> None:
    source = Scene((Sprite("square", "red", size=0.25),), Background("plain"))
    for target in (reshape(source, "circle"), remove(source)):
        kept = preserved(source, target, 2, 64)
        assert np.array_equal(render(source, 2)[kept], render(target, 2)[kept])
        assert kept[:, 0, 0].all()
        assert not kept[:, 32, 32].any()
    target = change_background(source, "striped")
    kept = preserved(source, target, 2, 64)
    assert np.array_equal(render(source, 2)[kept], render(target, 2)[kept])
    assert kept[:, 32, 32].all()
    assert not kept[:, 0, 0].any()
