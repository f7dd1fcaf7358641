"""Judge frames against the scene that they should show.

A sprite is what is saturated, since every background is grey. Its colour is that of its pixels, its
shape and style those of the template that covers it best, the background that of the best-fitting
pattern.

Shapes: F frames, H = W = size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentloom.sprites.render import FPS, REPEAT, cover_unit, paint_pattern
from latentloom.sprites.scene import (
    BACKGROUNDS,
    COLOURS,
    RGB,
    SHAPES,
    STYLES,
    Background,
    BackgroundKind,
    Colour,
    Scene,
    Shape,
    Style,
)
from latentloom.sprites.truth import Truth, tell_truth

Float = NDArray[np.float32]
Bool = NDArray[np.bool_]

# A frame counts as right at this overlap of seen and true mask.
MIN_IOU: Final = 0.6
# So much of a sprite must have one colour, or it has none: half-recoloured is not recoloured.
MIN_PURITY: Final = 0.8
# Saturation (largest minus smallest channel) above which a pixel may belong to a sprite.
MIN_CHROMA: Final = 60
# Fewer pixels than this share of the picture are noise, not a sprite.
MIN_AREA: Final = 0.006
# Backgrounds with a spread of greys below this are plain; the faintest pattern has 17.
MIN_SPREAD: Final = 7.0
_GRID: Final = 32


@dataclass(frozen=True, slots=True)
class Sighting:
    """What is seen in one frame; None where there is nothing to name."""

    colour: Colour | None
    shape: Shape | None
    style: Style | None
    background: BackgroundKind
    mask: Bool


@dataclass(frozen=True, slots=True)
class Score:
    """How right each frame is, bool or float32 `(F,)`, and how much the clip flickers."""

    colour_right: Bool
    shape_right: Bool
    style_right: Bool
    background_right: Bool
    iou: Float
    flicker: float
    """Mean absolute difference of consecutive frames, on 0..255."""
    background_flicker: float
    """The same, where nothing moves in truth: away from the sprites of both frames."""

    @property
    def all_right(self) -> Bool:
        """Whether every attribute is right and the masks overlap by more than `MIN_IOU`."""
        named = self.colour_right & self.shape_right & self.style_right & self.background_right
        return np.asarray(named & (self.iou > MIN_IOU))

    def means(self) -> dict[str, float]:
        """Return the share of right frames for each attribute, the mean overlap, and the flicker."""
        return {
            "colour": float(self.colour_right.mean()),
            "shape": float(self.shape_right.mean()),
            "style": float(self.style_right.mean()),
            "background": float(self.background_right.mean()),
            "iou": float(self.iou.mean()),
            "all": float(self.all_right.mean()),
            "flicker": self.flicker,
            "still_flicker": self.background_flicker,
        }


def score(frames: NDArray[np.uint8], scene: Scene, *, fps: float = FPS, start: int = 0) -> Score:
    """Judge frames against the scene they should show.

    Args:
        frames: uint8 `(F, H, H, 3)`.
        scene: What they should show, with at most one sprite.
        fps: Frames per second of the truth.
        start: The first frame's number in the scene.

    Raises:
        ValueError: If the scene has several sprites or the frames another shape.
    """
    if len(scene.sprites) > 1:
        raise ValueError(f"expected a scene of at most one sprite, got {len(scene.sprites)}")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != frames.shape[2]:
        raise ValueError(f"expected uint8 (F, H, H, 3), got {frames.dtype} {frames.shape}")
    truth = tell_truth(scene, len(frames), frames.shape[1], fps, start=start)
    seen = [look(frame) for frame in frames]
    sprite = scene.sprites[0] if scene.sprites else None
    return Score(
        colour_right=np.array([s.colour == (sprite and sprite.colour) for s in seen]),
        shape_right=np.array([s.shape == (sprite and sprite.shape) for s in seen]),
        style_right=np.array([s.style == (sprite and sprite.style) for s in seen]),
        background_right=np.array([s.background == scene.background.kind for s in seen]),
        iou=np.array([_iou(s.mask, t) for s, t in zip(seen, truth.mask, strict=True)], np.float32),
        flicker=flicker(frames),
        background_flicker=_background_flicker(frames, truth),
    )


def preserved(source: Scene, target: Scene, num_frames: int, size: int, *, start: int = 0) -> Bool:
    """Return the pixels that an edit should leave alone, `(F, H, W)`, away from its rims.

    Where the background changes that is the inside of the sprites, else what is outside of both scenes'.
    """
    before, after = (
        tell_truth(scene, num_frames, size, start=start).mask for scene in (source, target)
    )
    if source.background != target.background:
        return ~_grow(~(before & after))
    return ~_grow(before | after)


def look(frame: NDArray[np.uint8]) -> Sighting:
    """Name what one frame `(H, H, 3)` shows."""
    mask, colour = _find_sprite(frame)
    if mask.mean() < MIN_AREA:
        return Sighting(None, None, None, _name_background(frame, mask), np.zeros_like(mask))
    shape, style = _name_outline(mask)
    return Sighting(colour, shape, style, _name_background(frame, mask), mask)


def flicker(frames: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of consecutive frames; 0 for a single one."""
    if len(frames) < 2:
        return 0.0
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())


def _background_flicker(frames: NDArray[np.uint8], truth: Truth) -> float:
    still = ~(_grow(truth.mask[1:]) | _grow(truth.mask[:-1]))
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(axis=-1)
    return float(change[still].mean()) if still.any() else 0.0


def _find_sprite(frame: NDArray[np.uint8]) -> tuple[Bool, Colour | None]:
    """Return the mask of what is saturated, and its colour if it has one."""
    values = frame.astype(np.float32)
    chroma = values.max(axis=-1) - values.min(axis=-1)
    palette = np.asarray([RGB[name] for name in COLOURS], np.float32)
    # Directions away from grey, so that a pixel half covered at the rim has the sprite's colour too.
    hues = _directions(palette)
    nearest = (_directions(values) @ hues.T).argmax(axis=-1)
    sure = _open(chroma > MIN_CHROMA)
    if not sure.any():
        return sure, None
    counts = np.bincount(nearest[sure], minlength=len(COLOURS))
    best = int(counts.argmax())
    full = float(palette[best].max() - palette[best].min())
    mask = _open(chroma > full / 2)
    colour = COLOURS[best] if counts[best] >= MIN_PURITY * counts.sum() else None
    return mask, colour


def _directions(values: Float) -> Float:
    away = values - values.mean(axis=-1, keepdims=True)
    return np.asarray(away / (np.linalg.norm(away, axis=-1, keepdims=True) + 1e-3))


def _name_outline(mask: Bool) -> tuple[Shape, Style]:
    """Return the shape and style whose template overlaps best, once both fill the same box."""
    boxed = _box(mask)
    overlaps = [_iou(boxed, template) for _, _, template in _templates()]
    shape, style, _ = _templates()[int(np.argmax(overlaps))]
    return shape, style


@functools.cache
def _templates() -> tuple[tuple[Shape, Style, Bool], ...]:
    ticks = np.linspace(-1.2, 1.2, 121, dtype=np.float32)
    dx, dy = np.meshgrid(ticks, ticks)
    return tuple(
        (shape, style, _box(cover_unit(shape, style, dx, dy, pixels=50) >= 0.5))
        for shape in SHAPES
        for style in STYLES
    )


def _box(mask: Bool) -> Bool:
    """Return the mask's bounding box, sampled on a fixed grid."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    y = rows[0] + (np.arange(_GRID) + 0.5) / _GRID * (rows[-1] + 1 - rows[0])
    x = columns[0] + (np.arange(_GRID) + 0.5) / _GRID * (columns[-1] + 1 - columns[0])
    return mask[np.ix_(y.astype(int), x.astype(int))]


def _name_background(frame: NDArray[np.uint8], mask: Bool) -> BackgroundKind:
    """Return the kind of pattern that correlates best with the greys around the sprite."""
    size = len(mask)
    visible = ~_grow(mask, 3)
    grey = frame.mean(axis=-1, dtype=np.float32)[visible]
    if not grey.size or grey.std() < MIN_SPREAD:
        return "plain"
    kinds, bank = _patterns(size)
    seen = bank[:, visible.ravel()]
    seen = seen - seen.mean(axis=1, keepdims=True)
    fit = seen @ (grey - grey.mean()) / (np.linalg.norm(seen, axis=1) + 1e-6)
    return kinds[int(fit.argmax())]


@functools.lru_cache(maxsize=4)
def _patterns(size: int) -> tuple[tuple[BackgroundKind, ...], Float]:
    """Return every pattern at every shift of 1/12 of its repeat, `(N, size * size)`."""
    shifts = [k / 12 for k in range(12)]
    kinds: list[BackgroundKind] = []
    rows: list[Float] = []
    for kind in BACKGROUNDS:
        if kind == "plain":
            continue
        across = shifts if kind in REPEAT else [0.0]
        down = shifts if kind in ("checkered", "dotted") else [0.0]
        for shift in ((x, y) for x in across for y in down):
            kinds.append(kind)
            rows.append(paint_pattern(Background(kind, 1.0, shift), size).ravel())
    return tuple(kinds), np.stack(rows)


def _iou(one: Bool, other: Bool) -> float:
    """Return intersection over union; two empty masks agree."""
    union = int((one | other).sum())
    return float((one & other).sum() / union) if union else 1.0


def _neighbours(mask: Bool) -> NDArray[np.int64]:
    """Count the set pixels in the 3 x 3 block around each pixel of `(..., H, W)`."""
    padded = np.pad(mask.astype(np.int64), [(0, 0)] * (mask.ndim - 2) + [(1, 1), (1, 1)])
    rows = padded[..., :-2, :] + padded[..., 1:-1, :] + padded[..., 2:, :]
    return np.asarray(rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:])


def _open(mask: Bool) -> Bool:
    """Drop specks: pixels with fewer than three set pixels around them."""
    return np.asarray(mask & (_neighbours(mask) > 3))


def _grow(mask: Bool, times: int = 2) -> Bool:
    for _ in range(times):
        mask = np.asarray(_neighbours(mask) > 0)
    return mask
