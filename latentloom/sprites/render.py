"""Draw scenes as frames: analytic distances, antialiased over one pixel, at any resolution.

Shapes: F frames, H = W = size, coverage in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentloom.sprites.scene import RGB, Background, Scene, Shape, Sprite, Style

Float = NDArray[np.float32]
# What lies between two public functions, in whatever precision it was computed.
_Reals = NDArray[Any]

FPS: Final = 8.0
SIZE: Final = 64

# Width of the line of an outlined sprite, as a fraction of its radius.
LINE: Final = 0.28
# Greys of the two parts of a pattern at lightness 1, and the two ends of the gradient.
DARK: Final = 58.0
LIGHT: Final = 106.0
GRADIENT: Final = (36.0, 146.0)
# One repeat of a pattern, as a fraction of the side.
REPEAT: Final[dict[str, float]] = {"striped": 0.25, "checkered": 0.5, "dotted": 1 / 3}

_STAR: Final = tuple(
    (
        math.sin(math.pi * i / 5) * (1.0 if i % 2 == 0 else 0.55),
        -math.cos(math.pi * i / 5) * (1.0 if i % 2 == 0 else 0.55),
    )
    for i in range(10)
)
_TRIANGLE: Final = ((0.0, -0.95), (1.0, 0.8), (-1.0, 0.8))


def render(
    scene: Scene, num_frames: int, size: int = SIZE, fps: float = FPS, *, start: int = 0
) -> NDArray[np.uint8]:
    """Render frames of a scene.

    Args:
        scene: What to draw.
        num_frames: Frames to draw, at `start / fps` seconds and on.
        size: Pixels of a side.
        fps: Frames per second.
        start: First frame; frame k is the same whatever the range it is drawn in.

    Returns:
        uint8 `(F, size, size, 3)`, sRGB.
    """
    canvas = np.repeat(paint_background(scene.background, size)[None], num_frames, axis=0)
    seconds = [(start + k) / fps for k in range(num_frames)]
    for sprite in scene.sprites:
        coverage = cover(sprite, seconds, size)[..., None]
        canvas += coverage * (np.asarray(RGB[sprite.colour], np.float32) - canvas)
    return (canvas + 0.5).astype(np.uint8)


def paint_background(background: Background, size: int = SIZE) -> Float:
    """Return the background as float32 `(size, size, 3)` on 0..255."""
    grey = paint_pattern(background, size) * background.lightness
    # A trace of blue: not a grey card, and far from the saturation of any sprite.
    return np.stack([grey, grey, grey * 1.08], axis=-1).astype(np.float32)


def paint_pattern(background: Background, size: int = SIZE) -> Float:
    """Return the grey of a background at lightness 1, float32 `(size, size)`."""
    x, y = _grid(size)
    inside: _Reals
    if background.kind == "gradient":
        return np.asarray(GRADIENT[0] + (GRADIENT[1] - GRADIENT[0]) * y, np.float32)
    if background.kind == "plain":
        return np.full((size, size), (DARK + LIGHT) / 2, np.float32)
    repeat = REPEAT[background.kind]
    u = x + background.shift[0] * repeat
    v = y + background.shift[1] * repeat
    if background.kind == "striped":
        inside = _wave(u, repeat)
    elif background.kind == "checkered":
        across, down = _wave(u, repeat), _wave(v, repeat)
        inside = np.sign(across * down) * np.minimum(np.abs(across), np.abs(down))
    else:
        to_centre = np.hypot(_offset(u, repeat), _offset(v, repeat))
        inside = 0.28 * repeat - to_centre
    soft = np.clip(inside * size + 0.5, 0, 1)
    return np.asarray(DARK + (LIGHT - DARK) * soft, np.float32)


def cover(sprite: Sprite, seconds: Iterable[float], size: int = SIZE) -> Float:
    """Return how much of each pixel a sprite paints, float32 `(F, size, size)`."""
    centres = np.asarray([sprite.position(t) for t in seconds], np.float32).reshape(-1, 2)
    x, y = _grid(size)
    dx = (x[None] - centres[:, 0, None, None]) / sprite.size
    dy = (y[None] - centres[:, 1, None, None]) / sprite.size
    return cover_unit(sprite.shape, sprite.style, dx, dy, pixels=sprite.size * size)


def cover_unit(shape: Shape, style: Style, dx: Float, dy: Float, *, pixels: float) -> Float:
    """Return the coverage at offsets from a sprite's centre.

    Args:
        shape: Its shape.
        style: Its style.
        dx: Offsets to the right, in radii.
        dy: Offsets down, in radii.
        pixels: Pixels in one radius, which sets the width of the antialiased rim.
    """
    inside = -_distance(shape, dx, dy)
    if style == "outlined":
        inside = LINE / 2 - np.abs(inside - LINE / 2)
    return np.asarray(np.clip(inside * pixels + 0.5, 0, 1), np.float32)


def _distance(shape: Shape, dx: _Reals, dy: _Reals) -> _Reals:
    """Return the signed distance to a shape of radius 1, negative inside."""
    if shape == "circle":
        return np.asarray(np.hypot(dx, dy) - 0.95)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(dx), np.abs(dy)) - 0.84)
    return _polygon_distance(_TRIANGLE if shape == "triangle" else _STAR, dx, dy)


def _polygon_distance(corners: tuple[tuple[float, float], ...], dx: _Reals, dy: _Reals) -> _Reals:
    """Return the signed distance to a polygon. Source: I. Quilez, "2D distance functions"."""
    square = np.full(dx.shape, np.inf, np.float32)
    sign = np.ones(dx.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, corners[-1:] + corners[:-1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = dx - ax, dy - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        square = np.minimum(square, (wx - along * ex) ** 2 + (wy - along * ey) ** 2)
        above, below, left = dy >= ay, dy < by, ex * wy > ey * wx
        sign ^= (above & below & left) | (~above & ~below & ~left)
    return np.where(sign, np.sqrt(square), -np.sqrt(square))


def _grid(size: int) -> tuple[_Reals, ...]:
    """Return x and y of the pixel centres, as fractions of the side."""
    ticks = (np.arange(size, dtype=np.float32) + 0.5) / size
    return tuple(np.meshgrid(ticks, ticks))


def _offset(value: _Reals, repeat: float) -> _Reals:
    """Return the signed offset from the nearest repeat's centre."""
    return np.asarray(np.mod(value, repeat) - repeat / 2)


def _wave(value: _Reals, repeat: float) -> _Reals:
    """Return a triangle wave, positive on one half of each repeat, with slope 1."""
    return np.asarray(repeat / 4 - np.abs(_offset(value, repeat)))
