"""What a clip of the sprite world shows: frozen scenes, and the edits that make one from another.

Positions and sizes are fractions of the picture's side, time is in seconds, so that one scene renders
at any resolution and frame rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np

Shape = Literal["circle", "square", "triangle", "star"]
Colour = Literal["red", "yellow", "green", "cyan", "blue", "magenta"]
Style = Literal["filled", "outlined"]
MotionKind = Literal["still", "glide", "bounce", "circle", "swing"]
BackgroundKind = Literal["plain", "striped", "checkered", "dotted", "gradient"]

SHAPES: Final[tuple[Shape, ...]] = get_args(Shape)
COLOURS: Final[tuple[Colour, ...]] = get_args(Colour)
STYLES: Final[tuple[Style, ...]] = get_args(Style)
MOTIONS: Final[tuple[MotionKind, ...]] = get_args(MotionKind)
BACKGROUNDS: Final[tuple[BackgroundKind, ...]] = get_args(BackgroundKind)

# Hues 60 degrees apart; every background is grey, so saturation alone tells a sprite from it.
RGB: Final[dict[Colour, tuple[int, int, int]]] = {
    "red": (228, 40, 40),
    "yellow": (236, 218, 40),
    "green": (40, 190, 60),
    "cyan": (40, 205, 220),
    "blue": (45, 75, 235),
    "magenta": (220, 50, 210),
}

# Free room between a sprite and the picture's border.
BORDER: Final = 0.02


@dataclass(frozen=True, slots=True)
class Motion:
    """How a sprite moves: the kind, and the numbers that tell two motions of one kind apart."""

    kind: MotionKind = "still"
    amplitude: float = 0.15
    """Radius, height or half width of the path, in sides; unused by still and glide."""
    period: float = 3.0
    """Seconds for one round trip; unused by still and glide."""
    phase: float = 0.0
    """Where on its path the sprite starts, in turns."""
    heading: tuple[float, float] = (0.1, 0.0)
    """Velocity of a glide, in sides per second."""


@dataclass(frozen=True, slots=True)
class Sprite:
    """One coloured shape."""

    shape: Shape
    colour: Colour
    style: Style = "filled"
    size: float = 0.25
    """Radius of the circle around it, as a fraction of the side."""
    x: float = 0.5
    y: float = 0.5
    motion: Motion = Motion()

    def position(self, seconds: float) -> tuple[float, float]:
        """Return the centre at a time, kept inside the picture by reflection at its borders."""
        motion = self.motion
        turn = 2 * math.pi * (seconds / motion.period + motion.phase)
        x, y = self.x, self.y
        if motion.kind == "glide":
            x, y = x + motion.heading[0] * seconds, y + motion.heading[1] * seconds
        elif motion.kind == "bounce":
            y += motion.amplitude * (1 - 2 * abs(math.sin(turn / 2)))
        elif motion.kind == "circle":
            x += motion.amplitude * math.cos(turn)
            y += motion.amplitude * math.sin(turn)
        elif motion.kind == "swing":
            x += motion.amplitude * math.sin(turn)
        low = self.size + BORDER
        return _reflect(x, low, 1 - low), _reflect(y, low, 1 - low)


@dataclass(frozen=True, slots=True)
class Background:
    """What is behind the sprites. It never moves."""

    kind: BackgroundKind = "plain"
    lightness: float = 1.0
    """Factor on the greys, 0.8 to 1.2."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Where the pattern starts, as fractions of the side."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole clip: sprites, drawn in order, over a background."""

    sprites: tuple[Sprite, ...]
    background: Background = Background()


def random_scene(seed: int, *, num_sprites: int = 1) -> Scene:
    """Draw a scene; the same seed gives the same scene everywhere.

    Args:
        seed: Non-negative. Training uses seeds below 1,000,000; held-out clips start there.
        num_sprites: Sprites in the scene; 0 gives a background alone.
    """
    rng = np.random.default_rng([seed, num_sprites])
    sprites = tuple(_random_sprite(rng) for _ in range(num_sprites))
    background = Background(
        kind=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
        lightness=float(rng.uniform(0.8, 1.2)),
        shift=(float(rng.random()), float(rng.random())),
    )
    return Scene(sprites, background)


def recolour(scene: Scene, colour: Colour, *, index: int = 0) -> Scene:
    """Return the scene with one sprite in another colour."""
    return _replace_sprite(scene, index, replace(scene.sprites[index], colour=colour))


def reshape(scene: Scene, shape: Shape, *, index: int = 0) -> Scene:
    """Return the scene with one sprite in another shape."""
    return _replace_sprite(scene, index, replace(scene.sprites[index], shape=shape))


def restyle(scene: Scene, style: Style, *, index: int = 0) -> Scene:
    """Return the scene with one sprite in another style."""
    return _replace_sprite(scene, index, replace(scene.sprites[index], style=style))


def change_background(scene: Scene, kind: BackgroundKind) -> Scene:
    """Return the scene over another background, its lightness and shift kept."""
    return replace(scene, background=replace(scene.background, kind=kind))


def insert(scene: Scene, sprite: Sprite) -> Scene:
    """Return the scene with one more sprite, in front of the others."""
    return replace(scene, sprites=(*scene.sprites, sprite))


def remove(scene: Scene, *, index: int = 0) -> Scene:
    """Return the scene without one of its sprites."""
    return replace(scene, sprites=scene.sprites[:index] + scene.sprites[index + 1 :])


def _replace_sprite(scene: Scene, index: int, sprite: Sprite) -> Scene:
    sprites = list(scene.sprites)
    sprites[index] = sprite
    return replace(scene, sprites=tuple(sprites))


def _random_sprite(rng: np.random.Generator) -> Sprite:
    size = float(rng.uniform(0.24, 0.31))
    amplitude = float(rng.uniform(0.1, 0.17))
    # The anchor leaves room for the path, so that paths are seldom folded at a border.
    low = min(size + BORDER + amplitude, 0.48)
    angle = rng.uniform(0, 2 * math.pi)
    speed = rng.uniform(0.12, 0.3)
    return Sprite(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=COLOURS[rng.integers(len(COLOURS))],
        style=STYLES[rng.integers(len(STYLES))],
        size=size,
        x=float(rng.uniform(low, 1 - low)),
        y=float(rng.uniform(low, 1 - low)),
        motion=Motion(
            kind=MOTIONS[rng.integers(len(MOTIONS))],
            amplitude=amplitude,
            period=float(rng.uniform(2.5, 4.5)),
            phase=float(rng.random()),
            heading=(float(speed * math.cos(angle)), float(speed * math.sin(angle))),
        ),
    )


def _reflect(value: float, low: float, high: float) -> float:
    """Fold a value into [low, high], like a ball between two walls."""
    span = high - low
    if span <= 0:
        return (low + high) / 2
    folded = (value - low) % (2 * span)
    return low + min(folded, 2 * span - folded)
