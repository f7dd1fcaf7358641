"""Look at a video file: what is in it, and where each of its frames is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from latentloom.media import process
from latentloom.schemas.media import VideoInfo

MAX_PIXELS = 8192 * 8192
"""Largest picture that is decoded."""


def probe(
    path: str | Path,
    *,
    video_stream: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_damage: Literal["error", "hold"] = "error",
) -> VideoInfo:
    """Index a whole file, in a child process, so that no file can crash the caller.

    Args:
        path: Path of a local, regular file.
        video_stream: Index of a stream in the file (ffprobe's numbers); None takes the first video
            stream that is not a cover picture.
        max_pixels: Refuse pictures with more pixels than this.
        on_damage: "error" refuses a file that was cut off. "hold" indexes the frames that its
            container promises too; readers then repeat the last one that is there.

    Returns:
        Facts and the pts of every frame, in presentation order.

    Raises:
        MediaError: The file is missing, damaged, holds no frame, or crashed its decoder.
    """
    arguments = {
        "path": os.path.abspath(path),
        "video_stream": video_stream,
        "max_pixels": max_pixels,
        "on_damage": on_damage,
    }
    _, text = process.call("probe", arguments, what=f"probing {str(path)!r}")
    return VideoInfo.model_validate_json(text)
