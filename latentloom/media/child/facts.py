"""Facts of an open file as FFmpeg names them, turned into our fields."""

from __future__ import annotations

from typing import Any

from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentloom.schemas.media import (
    UNSPECIFIED,
    AudioInfo,
    Chapter,
    ColorRange,
    ColorTags,
    SubtitleInfo,
)

TEXT_SUBTITLES = frozenset(["ass", "ssa", "subrip", "srt", "mov_text", "webvtt", "text"])
"""Codecs of subtitles that are text."""
KEPT_TAGS = ("title", "artist", "album", "genre", "date", "copyright", "description", "language")
"""Tags of the container that describe the work, not the program or hour that wrote it."""
FIELD_ORDERS = {2: "top", 3: "bottom", 4: "bottom", 5: "top"}
"""AVFieldOrder: TT, BB, TB, BT (coded first, shown first); by the field that is shown first."""
RANGES: dict[int, ColorRange] = {0: "unspecified", 1: "limited", 2: "full"}


def of_file(container: InputContainer, stream: VideoStream) -> dict[str, Any]:
    """Return the fields of VideoInfo that the container tells.

    Args:
        container: An open file.
        stream: Its video stream.
    """
    context = stream.codec_context
    aspect = stream.sample_aspect_ratio
    return {
        "format_name": container.format.name,
        "stream": stream.index,
        "codec": context.name,
        "width": context.width,
        "height": context.height,
        "sample_aspect_ratio": (aspect.numerator, aspect.denominator) if aspect else (1, 1),
        "audio": tuple(_audio(s) for s in container.streams.audio),
        "subtitles": tuple(_subtitle(s) for s in container.streams.subtitles),
        "chapters": tuple(_chapters(container)),
        "metadata": {k: v for k, v in container.metadata.items() if k.lower() in KEPT_TAGS},
        **_fields(int(context.field_order)),
    }


def of_frame(frame: VideoFrame) -> dict[str, Any]:
    """Return the fields of VideoInfo that a decoded frame tells.

    Args:
        frame: The first frame of the stream.
    """
    pix_fmt = frame.format.name
    color_range = RANGES.get(int(frame.color_range), "unspecified")
    if pix_fmt.startswith("yuvj") or frame.format.is_rgb:
        color_range = "full"
    return {
        "pix_fmt": pix_fmt,
        "bit_depth": max(component.bits for component in frame.format.components),
        **({"interlaced": True} if frame.interlaced_frame else {}),
        "rotation": round(frame.rotation / 90) * 90 % 360,
        "color": ColorTags(
            range=color_range,
            matrix=_matrix(frame),
            transfer=int(frame.color_trc),
            primaries=int(frame.color_primaries),
        ),
    }


def _matrix(frame: VideoFrame) -> int:
    """Return the matrix of a frame; PNG says RGB (0) of grey pictures, which have none."""
    grey = len(frame.format.components) == 1
    return UNSPECIFIED if grey and not frame.format.is_rgb else int(frame.colorspace)


def _fields(order: int) -> dict[str, Any]:
    return {
        "interlaced": order in FIELD_ORDERS,
        "field_order": FIELD_ORDERS.get(order, "progressive"),
    }


def _audio(stream: Any) -> AudioInfo:
    context = stream.codec_context
    return AudioInfo(
        index=stream.index,
        codec=context.name,
        sample_rate=context.sample_rate,
        channels=context.channels,
        **_names(stream),
    )


def _subtitle(stream: Stream) -> SubtitleInfo:
    codec = codec_name(stream)
    return SubtitleInfo(
        index=stream.index, codec=codec, text=codec in TEXT_SUBTITLES, **_names(stream)
    )


def codec_name(stream: Any) -> str:
    """Return FFmpeg's name of a stream's decoder; streams that have none exist.

    Args:
        stream: A stream of an open file.
    """
    return "unknown" if stream.codec_context is None else str(stream.codec_context.name)


def _names(stream: Stream) -> dict[str, str | None]:
    return {"language": stream.metadata.get("language"), "title": stream.metadata.get("title")}


def _chapters(container: InputContainer) -> list[Chapter]:
    return [
        Chapter(
            start_seconds=float(chapter["start"] * (chapter["time_base"] or 0)),
            end_seconds=float(chapter["end"] * (chapter["time_base"] or 0)),
            title=chapter["metadata"].get("title", ""),
        )
        for chapter in container.chapters()
    ]
