"""Frames are drawn the same way at any size, in any range, at any time."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from latentloom.sprites.render import cover, paint_background, render
from latentloom.sprites.scene import (
    BACKGROUNDS,
    RGB,
    Background,
    BackgroundKind,
    Scene,
    Sprite,
    random_scene,
    recolour,
)


def test_frames_are_deterministic() -> None:
    first, second = render(random_scene(1), 4), render(random_scene(1), 4)
    assert first.dtype == np.uint8
    assert first.shape == (4, 64, 64, 3)
    assert hashlib.sha256(first.tobytes()).digest() == hashlib.sha256(second.tobytes()).digest()


def test_a_frame_does_not_depend_on_the_range_it_is_drawn_in() -> None:
    scene = random_scene(2)
    assert np.array_equal(render(scene, 8)[5:], render(scene, 3, start=5))


def test_a_larger_picture_shows_the_same() -> None:
    scene = random_scene(8)
    small, large = render(scene, 3, 64).astype(float), render(scene, 3, 128).astype(float)
    halved = large.reshape(3, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - small).mean() < 2


def test_a_filled_sprite_has_its_own_colour_inside() -> None:
    frame = render(Scene((Sprite("circle", "green"),)), 1)[0]
    assert tuple(frame[32, 32]) == RGB["green"]


def test_an_outlined_sprite_shows_the_background_inside() -> None:
    scene = Scene((Sprite("square", "green", "outlined"),))
    frame, empty = render(scene, 1)[0], render(Scene(()), 1)[0]
    assert np.array_equal(frame[32, 32], empty[32, 32])
    assert not np.array_equal(frame, empty)


def test_edges_are_antialiased() -> None:
    coverage = cover(Sprite("circle", "red"), [0.0])
    assert ((coverage > 0.1) & (coverage < 0.9)).sum() > 20
    area = np.pi * (0.95 * 0.25 * 64) ** 2
    assert coverage.sum() == pytest.approx(area, rel=0.01)


def test_recolouring_leaves_the_rest_of_the_picture_alone() -> None:
    scene = random_scene(4)
    before, after = render(scene, 2), render(recolour(scene, "cyan"), 2)
    untouched = cover(scene.sprites[0], [0, 1 / 8]) == 0
    assert np.array_equal(before[untouched], after[untouched])


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_is_grey(kind: BackgroundKind) -> None:
    picture = paint_background(Background(kind, 1.2))
    assert picture.min() > 20
    assert picture.max() < 200
    assert np.ptp(picture, axis=-1).max() < 20


def test_backgrounds_differ() -> None:
    pictures = [paint_background(Background(kind)) for kind in BACKGROUNDS]
    for index, one in enumerate(pictures):
        assert all(np.abs(one - other).mean() > 10 for other in pictures[index + 1 :])
