"""The sound is as long as the clip and follows its sprite."""

from __future__ import annotations

import numpy as np

from latentloom.sprites.scene import Motion, Scene, Sprite, random_scene
from latentloom.sprites.soundtrack import soundtrack


def test_it_is_as_long_as_the_clip_and_deterministic() -> None:
    scene = random_scene(1)
    sound = soundtrack(scene, 32, 8, 16_000)
    assert sound.dtype == np.float32
    assert sound.shape == (64_000,)
    assert 0.1 < np.abs(sound).max() <= 1
    assert np.array_equal(sound, soundtrack(scene, 32, 8, 16_000))


def test_a_higher_sprite_sounds_higher() -> None:
    low, high = (Scene((Sprite("circle", "red", y=y),)) for y in (0.7, 0.3))
    assert _crossings(soundtrack(high, 8)) > 1.2 * _crossings(soundtrack(low, 8))


def test_it_follows_the_motion() -> None:
    scene = Scene((Sprite("circle", "red", y=0.7, motion=Motion("glide", heading=(0, -0.3))),))
    sound = soundtrack(scene, 8)
    assert _crossings(sound[24_000:]) > _crossings(sound[:24_000])


def test_nothing_is_silent() -> None:
    assert not soundtrack(Scene(()), 8).any()


def _crossings(sound: np.ndarray) -> int:
    return int((np.diff(np.sign(sound)) != 0).sum())
