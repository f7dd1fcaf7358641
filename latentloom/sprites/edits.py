"""Draw an edit of a scene: what is shown, what should be, and the words that ask for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, TypeVar, get_args

import numpy as np

from latentloom.sprites.scene import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    STYLES,
    Scene,
    change_background,
    random_scene,
    recolour,
    remove,
    reshape,
    restyle,
)

Task = Literal["recolour", "reshape", "background", "insert", "remove", "style"]
TASKS: Final[tuple[Task, ...]] = get_args(Task)
_Name = TypeVar("_Name")


def draw_edit(task: Task, seed: int) -> tuple[Scene, Scene]:
    """Draw a scene and the same one edited; the same arguments give the same scenes everywhere.

    Args:
        task: What is changed. `insert` and `remove` are between a sprite and the background alone.
        seed: Of the scene, see `random_scene`.

    Returns:
        Source and target, which differ in one attribute of one sprite, or in the background's kind.
    """
    scene = random_scene(seed)
    sprite = scene.sprites[0]
    rng = np.random.default_rng([seed, TASKS.index(task)])
    if task == "recolour":
        return scene, recolour(scene, _another(COLOURS, sprite.colour, rng))
    if task == "reshape":
        return scene, reshape(scene, _another(SHAPES, sprite.shape, rng))
    if task == "style":
        return scene, restyle(scene, _another(STYLES, sprite.style, rng))
    if task == "background":
        return scene, change_background(scene, _another(BACKGROUNDS, scene.background.kind, rng))
    empty = remove(scene)
    return (empty, scene) if task == "insert" else (scene, empty)


def instructions(source: Scene, target: Scene) -> list[str]:
    """Return the ways to ask for an edit, the plainest first.

    Args:
        source: A scene with one sprite.
        target: The same with one attribute of it changed, or the background's kind.

    Raises:
        ValueError: If that is not how they differ.

    >>> from latentloom.sprites.scene import Scene, Sprite
    >>> instructions(Scene((Sprite("star", "red"),)), Scene((Sprite("star", "blue"),)))[0]
    'make it blue'
    """
    if len(source.sprites) != 1 or len(target.sprites) != 1:
        raise ValueError(
            f"expected one sprite on each side, got {len(source.sprites)} and {len(target.sprites)}"
        )
    old, new = source.sprites[0], target.sprites[0]
    over, under = source.background, target.background
    if under != over and old == new and under == replace(over, kind=under.kind):
        kind = under.kind
        return [
            f"change the background to {kind}",
            f"make the background {kind}",
            f"put it over a {kind} background",
        ]
    if under == over:
        if new == replace(old, colour=new.colour) != old:
            return [f"make it {new.colour}", f"make the {old.shape} {new.colour}"]
        if new == replace(old, style=new.style) != old:
            return [f"make it {new.style}", f"make the {old.shape} {new.style}"]
        if new == replace(old, shape=new.shape) != old:
            return [f"turn the {old.shape} into a {new.shape}", f"make it a {new.shape}"]
    raise ValueError(
        "expected scenes that differ in one attribute of the sprite or background kind"
    )


def _another(names: tuple[_Name, ...], name: _Name, rng: np.random.Generator) -> _Name:
    """Draw another name than the given one."""
    others = [other for other in names if other != name]
    return others[rng.integers(len(others))]
