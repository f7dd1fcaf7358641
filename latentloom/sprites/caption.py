"""Say what a scene shows, in a small fixed vocabulary."""

from __future__ import annotations

from typing import Final

from latentloom.sprites.scene import MotionKind, Scene, Sprite

_VERBS: Final[dict[MotionKind, str]] = {
    "still": "stays still",
    "glide": "glides",
    "bounce": "bounces",
    "circle": "circles",
    "swing": "swings",
}


def caption(
    scene: Scene, *, style: bool = True, motion: bool = True, background: bool = True
) -> str:
    """Describe a scene.

    Args:
        scene: What is shown.
        style: Name each sprite's style.
        motion: Name each sprite's motion.
        background: Name the background's kind.

    >>> from latentloom.sprites.scene import Scene, Sprite
    >>> caption(Scene((Sprite("circle", "red"),)))
    'a red filled circle stays still over a plain background'
    """
    parts = [_describe(sprite, style=style, motion=motion) for sprite in scene.sprites]
    what = " and ".join(parts) if parts else "nothing"
    return f"{what} over a {scene.background.kind} background" if background else what


def _describe(sprite: Sprite, *, style: bool, motion: bool) -> str:
    words = ["a", sprite.colour, sprite.style if style else "", sprite.shape]
    if motion:
        words.append(_VERBS[sprite.motion.kind])
    return " ".join(word for word in words if word)
