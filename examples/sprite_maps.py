"""Render a clip and the maps that the examples read: python examples/sprite_maps.py FOLDER."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from latentloom.flows.example import SCENE
from latentloom.media.write import write_video
from latentloom.ops.edges import edges
from latentloom.sprites.render import FPS, SIZE, render
from latentloom.sprites.scene import recolour
from latentloom.sprites.truth import tell_truth

# Pixels of background in the mask: a sprite's smooth edge lies a little outside of it.
ROOM = 3


def write_maps(folder: Path, num_frames: int) -> None:
    """Write clip.mp4, edges.mkv, mask.mkv (white on and around the sprite) and edited.mkv (recoloured)."""
    folder.mkdir(parents=True, exist_ok=True)
    clip = render(SCENE, num_frames, SIZE)
    outlines = np.round(255 * edges(clip)).astype(np.uint8)
    grow = ImageFilter.MaxFilter(2 * ROOM + 1)
    masks = 255 * tell_truth(SCENE, num_frames, SIZE).mask.astype(np.uint8)
    mask = np.stack([np.asarray(Image.fromarray(one).filter(grow)) for one in masks])
    write_video(folder / "clip.mp4", clip, Fraction(FPS))
    for name, pictures in (
        ("edges.mkv", np.repeat(outlines.transpose(0, 2, 3, 1), 3, axis=-1)),
        ("mask.mkv", np.repeat(mask[..., None], 3, axis=-1)),
        ("edited.mkv", render(recolour(SCENE, "blue"), num_frames, SIZE)),
    ):
        write_video(folder / name, pictures, Fraction(FPS), codec="ffv1")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--frames", type=int, default=32)
    arguments = parser.parse_args()
    write_maps(arguments.folder, arguments.frames)


if __name__ == "__main__":
    main()
