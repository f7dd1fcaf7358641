"""Give a scene a sound: one tone per sprite, higher when the sprite is higher."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentloom.sprites.render import FPS
from latentloom.sprites.scene import COLOURS, Scene

# Pitches in Hz at the bottom of the picture, a pentatonic scale: any two sound well together.
_PITCHES: Final = (220.0, 246.9, 277.2, 329.6, 370.0, 440.0)
_LOUDNESS: Final = 0.3
_TICKS_PER_SECOND: Final = 100


def soundtrack(
    scene: Scene, num_frames: int, fps: float = FPS, sample_rate: int = 48_000
) -> NDArray[np.float32]:
    """Return the sound of a clip; the same arguments give the same samples.

    Args:
        scene: Whose sprites are heard; a scene without any is silent.
        num_frames: Frames of the clip.
        fps: Its frames per second.
        sample_rate: Samples per second.

    Returns:
        float32 `(samples,)` in [-1, 1], as long as the frames to the nearest sample.
    """
    num_samples = round(num_frames / fps * sample_rate)
    seconds = np.arange(num_samples) / sample_rate
    ticks = np.arange(0, num_frames / fps + 1, 1 / _TICKS_PER_SECOND)
    total = np.zeros(num_samples)
    for sprite in scene.sprites:
        height = [1 - sprite.position(tick)[1] for tick in ticks]
        octave = np.interp(seconds, ticks, height)
        pitch = _PITCHES[COLOURS.index(sprite.colour)] * 2**octave
        turns = np.cumsum(pitch) / sample_rate
        total += np.sin(2 * np.pi * turns) * _LOUDNESS / len(scene.sprites)
    # Fade in and out over 20 ms, so that nothing clicks.
    fade = np.minimum(seconds, seconds[::-1]) / 0.02 if num_samples else seconds
    return np.asarray(total * np.clip(fade, 0, 1), np.float32)
