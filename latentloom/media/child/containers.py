"""What each output container can hold, asked of FFmpeg itself."""

from __future__ import annotations

import io
from functools import lru_cache

import av

from latentloom.errors import MediaError
from latentloom.media.child.encoder import ENCODERS
from latentloom.schemas.media import AudioInfo, SubtitleInfo, VideoInfo

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""Containers that keep any pts (Matroska to the millisecond), by suffix."""
TEXT_CODECS = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip"}
"""What text subtitles become where they cannot be copied."""


def format_of(suffix: str) -> str:
    """Return FFmpeg's name of a container.

    Args:
        suffix: Suffix of a file name, with its dot.

    Raises:
        MediaError: Videos are not written to such files.
    """
    try:
        return FORMATS[suffix.lower()]
    except KeyError as error:
        raise MediaError(
            f"videos are not written to {suffix or 'files without a suffix'}; "
            f"name the output {', '.join(FORMATS)}"
        ) from error


@lru_cache
def supported_codecs(container: str) -> frozenset[str]:
    """Return the codecs that a container holds, by FFmpeg's names of coders and decoders."""
    with av.open(io.BytesIO(), "w", format=container) as output:
        return frozenset(output.supported_codecs)


def audio_codec(track: AudioInfo, container: str, mode: str) -> str:
    """Return "copy" or "aac": what becomes of an audio stream.

    Args:
        track: The stream.
        container: FFmpeg's name of the container.
        mode: "auto", "copy" or "aac".

    Raises:
        MediaError: It has to be copied and cannot be.
    """
    if mode == "aac":
        return "aac"
    if track.codec in supported_codecs(container):
        return "copy"
    if mode == "copy":
        raise MediaError(
            f"audio stream {track.index} ({track.codec}) cannot be copied into {container}. "
            "Set output.audio: auto to encode it as AAC, or name the output .mkv or .mov."
        )
    return "aac"


def subtitle_codec(track: SubtitleInfo, container: str) -> str:
    """Return "copy" or the codec that a text subtitle stream is rewritten in."""
    wanted = TEXT_CODECS[container]
    return "copy" if track.codec in supported_codecs(container) else wanted


def find_problems(info: VideoInfo, suffix: str, audio: str, codec: str) -> list[str]:
    """List why a video cannot be written as asked.

    Args:
        info: What is known of the source.
        suffix: Suffix of the output, with its dot.
        audio: "auto", "copy", "aac" or "none".
        codec: Codec of the video.
    """
    try:
        container = format_of(suffix)
    except MediaError as error:
        return [str(error)]
    problems = []
    if codec not in _names(container):
        there = [s for s, f in FORMATS.items() if codec in _names(f)]
        problems.append(
            f"{codec} cannot be written to {suffix}; name the output {' or '.join(there)}"
        )
    for track in info.audio if audio != "none" else ():
        try:
            audio_codec(track, container, audio)
        except MediaError as error:
            problems.append(str(error))
    return problems


def _names(container: str) -> frozenset[str]:
    """Return our own names of the video codecs that a container holds."""
    held = supported_codecs(container)
    return frozenset(name for name, encoder in ENCODERS.items() if encoder in held)
