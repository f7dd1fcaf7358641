"""Edit frames one by one, each kind of editor by a function of its own."""

from __future__ import annotations

from collections.abc import Callable

from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.editors.controlnet import controlnet
from latentloom.tasks.editors.img2img import img2img
from latentloom.tasks.tensors import Array

EDITORS: dict[str, Callable[[OpenChunk], Array]] = {
    "img2img": img2img,
    "controlnet": controlnet,
}
"""What makes the frames of each ``kind``."""


def edit(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    return EDITORS[str(chunk.variant.params["kind"])](chunk)
