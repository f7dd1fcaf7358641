"""Edit frames one by one, each kind of editor by a function of its own."""

from __future__ import annotations

from collections.abc import Callable

from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.editors.controlnet import controlnet
from latentloom.tasks.editors.frames import frames
from latentloom.tasks.editors.img2img import img2img
from latentloom.tasks.editors.inpaint import inpaint, outpaint
from latentloom.tasks.editors.instruct_pix2pix import instruct_pix2pix
from latentloom.tasks.editors.prompt2prompt import prompt2prompt
from latentloom.tasks.editors.t2i_adapter import t2i_adapter
from latentloom.tasks.tensors import Array

EDITORS: dict[str, Callable[[OpenChunk], Array]] = {
    "img2img": img2img,
    "controlnet": controlnet,
    "t2i_adapter": t2i_adapter,
    "inpaint": inpaint,
    "outpaint": outpaint,
    "frames": frames,
    "instruct_pix2pix": instruct_pix2pix,
    "prompt2prompt": prompt2prompt,
}
"""What makes the frames of each ``kind``."""


def edit(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    return EDITORS[str(chunk.variant.params["kind"])](chunk)
