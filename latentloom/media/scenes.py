"""Find scene cuts: frames that have nothing to do with the one before."""

from __future__ import annotations

import os
from pathlib import Path

from latentloom.media import process
from latentloom.schemas.media import VideoInfo

_AT_ONCE = 500


def find_cuts(path: str | Path, info: VideoInfo, *, threshold: float) -> tuple[int, ...]:
    """Look at every frame of a video, in the child process.

    Args:
        path: Path of a local file.
        info: Its index, from ``probe``.
        threshold: FFmpeg's scdet score, 0 to 100, from which a frame begins a scene.

    Returns:
        Frames that begin a scene, without the first of the video.

    Raises:
        MediaError: The file crashed its decoder.
    """
    text = info.model_dump_json().encode()
    found: list[int] = []
    for start in range(0, info.num_frames, _AT_ONCE):
        arguments = {
            "path": os.path.abspath(path),
            "start": start,
            "stop": min(start + _AT_ONCE, info.num_frames),
            "threshold": threshold,
        }
        what = f"looking for scene cuts in {str(path)!r}"
        answer, _ = process.call("find_cuts", arguments, text, what=what)
        found += answer["cuts"]
    return tuple(found)
