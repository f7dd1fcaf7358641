"""Join encoded segments to a video file: exact times, with the sound that belongs to them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latentloom.media import process
from latentloom.schemas.media import AudioMode, EncodeSettings, JoinReport, VideoCodec, VideoInfo


def join_segments(
    segments: Iterable[bytes],
    destination: str | Path,
    *,
    source: str | Path | None,
    info: VideoInfo,
    first_frame: int,
    last_frame: int,
    audio: AudioMode,
    settings: EncodeSettings,
    metadata: Mapping[str, str],
    suffix: str | None = None,
) -> JoinReport:
    """Write frames [first_frame, last_frame) of a source, as segments hold them, to a file.

    Packets are copied, so bytes repeat: they depend on nothing but the arguments, and not on paths.
    Audio and text subtitle streams and chapters of the source come along, cut to the same time.
    The first frame is at 0. The file is read again and its frames are compared, one by one.

    Args:
        segments: What ``encode_segment`` made, in order; taken one at a time.
        destination: File to write, of a temporary name: it is removed on failure, never renamed.
        source: File that sound, subtitles and chapters come from; None for none.
        info: What ``probe`` found in the source.
        first_frame: First frame of the cut.
        last_frame: One past its last frame.
        audio: "copy", "aac", "none", or "auto": copy what the container holds, else AAC.
        settings: What the segments were encoded with.
        metadata: Tags for the file. Matroska makes their names upper case.
        suffix: Suffix that chooses the container, if it is not the destination's.

    Returns:
        What the file holds.

    Raises:
        MediaError: The container cannot hold this, or segments are missing.
        ResourceError: The disk is full.
    """
    key = uuid.uuid4().hex
    what = f"writing {str(destination)!r}"
    arguments = {
        "key": key,
        "path": os.path.abspath(destination),
        "suffix": suffix if suffix is not None else Path(destination).suffix,
        "settings": settings.model_dump(mode="json"),
        "source": None if source is None else os.path.abspath(source),
        "first_frame": first_frame,
        "last_frame": last_frame,
        "audio": audio,
        "metadata": dict(metadata),
    }
    _call("open_joiner", arguments, what, info.model_dump_json().encode())
    try:
        for segment in segments:
            _call("join", {"key": key}, what, segment)
        report = _call("close_joiner", {"key": key, "finish": True}, what)
    except BaseException:
        _call("close_joiner", {"key": key, "finish": False}, what)
        # A child that crashed could not remove it.
        Path(destination).unlink(missing_ok=True)
        raise
    return JoinReport.model_validate_json(report)


def check_container(info: VideoInfo, suffix: str, audio: AudioMode, codec: VideoCodec) -> list[str]:
    """Say while planning why a video cannot be written as asked; an empty list if it can.

    Args:
        info: What ``probe`` found in the source.
        suffix: Suffix of the output, with its dot.
        audio: What is to become of the sound.
        codec: Codec of the output.
    """
    arguments = {"suffix": suffix, "audio": audio, "codec": codec}
    text = info.model_dump_json().encode()
    answer, _ = process.call("check_container", arguments, text, what=f"checking {suffix}")
    problems: list[str] = answer["problems"]
    return problems


def _call(op: str, arguments: dict[str, Any], what: str, payload: bytes = b"") -> bytes:
    limit = process.ENCODING_SECONDS
    return process.call(op, arguments, payload, what=what, limit_seconds=limit)[1]
