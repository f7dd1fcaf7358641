"""The truth is that of the frames: masks, centres, flow."""

from __future__ import annotations

import numpy as np

from latentloom.sprites.render import render
from latentloom.sprites.scene import RGB, Background, Motion, Scene, Sprite, random_scene
from latentloom.sprites.truth import tell_truth


def test_masks_are_where_the_sprite_was_painted() -> None:
    for seed in range(12):
        scene = random_scene(seed)
        empty = Scene((), scene.background)
        changed = np.abs(render(scene, 3).astype(int) - render(empty, 3)).max(axis=-1)
        colour = np.asarray(RGB[scene.sprites[0].colour])
        full = np.abs(colour - render(empty, 3)).max(axis=-1)
        painted = changed >= full / 2 - 1
        mask = tell_truth(scene, 3).mask
        assert (painted ^ mask).sum() <= 0.005 * mask.size


def test_a_hidden_sprite_has_no_mask() -> None:
    below, above = Sprite("circle", "red", size=0.2), Sprite("square", "blue", size=0.3)
    truth = tell_truth(Scene((below, above)), 2)
    assert not truth.masks[0].any()
    assert truth.masks[1].any()


def test_flow_is_how_far_the_sprite_went() -> None:
    sprite = Sprite("square", "red", motion=Motion("glide", heading=(0.125, -0.125)))
    truth = tell_truth(Scene((sprite,)), 3)
    assert truth.flow.shape == (2, 64, 64, 2)
    assert np.allclose(truth.flow[truth.mask[:-1]], (1, -1))
    assert not truth.flow[~truth.mask[:-1]].any()


def test_following_the_flow_finds_the_same_pixel() -> None:
    sprite = Sprite("square", "red", motion=Motion("glide", heading=(0.125, 0.0)))
    scene = Scene((sprite,), Background("plain"))
    frames, truth = render(scene, 2), tell_truth(scene, 2)
    y, x = np.nonzero(truth.mask[0])
    step = truth.flow[0, y, x].astype(int)
    assert np.array_equal(frames[0, y, x], frames[1, y + step[:, 1], x + step[:, 0]])


def test_a_scene_without_sprites_has_no_masks() -> None:
    truth = tell_truth(Scene(()), 2)
    assert truth.masks.shape == (0, 2, 64, 64)
    assert not truth.mask.any()
