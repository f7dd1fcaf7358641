"""Sound and subtitles of the source, cut to the frames that the output shows.

Times stay relative to each other: every track is moved by the start of the cut and by nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from av.container import OutputContainer
from av.packet import Packet

MILLISECOND = Fraction(1, 1000)
MOV_TEXT_HEADER = (
    b"[Script Info]\nScriptType: v4.00+\nPlayResX: 384\nPlayResY: 288\n\n[V4+ Styles]\n"
    b"Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, "
    b"Bold, Italic, Underline, StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, "
    b"Shadow, Alignment, MarginL, MarginR, MarginV, Encoding\n"
    b"Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1\n\n"
    b"[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)
"""FFmpeg makes the sample description of mov_text from an ASS header."""


@dataclass(frozen=True)
class Cut:
    """The time that the output shows, in seconds of the source's clock."""

    start: Fraction
    stop: Fraction | None
    """None keeps what sounds after the last frame of the source."""
    has_preroll: bool
    """The container hides what lies before time 0 (edit lists), so one packet may begin there."""


class Track(Protocol):
    """One stream on its way to the output."""

    def feed(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Take a packet of the source (the last is empty), give packets for the output."""


class CopiedTrack:
    """Packets as they are, less those outside the cut."""

    def __init__(self, source: Any, output: OutputContainer, cut: Cut) -> None:
        self._cut = cut
        self._stream = output.add_stream_from_template(source)
        name_track(source, self._stream)

    def feed(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Take a packet of the source, give it or nothing."""
        if packet.pts is None or not packet.size:
            return
        tick = packet.time_base
        begin = packet.pts * tick
        end = begin + (packet.duration or 0) * tick
        starts = end >= self._cut.start if self._cut.has_preroll else begin >= self._cut.start
        if not starts or (self._cut.stop is not None and begin >= self._cut.stop):
            return
        offset = round(self._cut.start / tick)
        packet.pts -= offset
        packet.dts = packet.pts if packet.dts is None else packet.dts - offset
        packet.stream = self._stream
        yield packet


class TextTrack:
    """Text subtitles, in the codec that the container wants, clipped to the cut."""

    def __init__(self, source: Any, output: OutputContainer, cut: Cut, codec: str) -> None:
        self._cut = cut
        self._source_codec = source.codec_context.name
        self._codec = self._source_codec if codec == "copy" else codec
        self._stream: Any = self._add_stream(source, output)
        name_track(source, self._stream)

    def feed(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Take a packet of the source, give its text anew or nothing."""
        data = bytes(packet)
        text = plain_text(data, self._source_codec)
        if packet.pts is None or not text.strip():
            return
        begin = packet.pts * packet.time_base - self._cut.start
        end = begin + (packet.duration or 0) * packet.time_base
        stop = None if self._cut.stop is None else self._cut.stop - self._cut.start
        if end <= 0 or (stop is not None and begin >= stop):
            return
        begin, end = max(begin, Fraction(0)), end if stop is None else min(end, stop)
        is_same = self._codec == self._source_codec
        made: Packet[Any] = Packet(data if is_same else _pack(text, self._codec))
        made.time_base = MILLISECOND
        made.pts = made.dts = round(begin / MILLISECOND)
        made.duration = max(1, round((end - begin) / MILLISECOND))
        made.is_keyframe = True
        made.stream = self._stream
        yield made

    def _add_stream(self, source: Any, output: OutputContainer) -> Any:
        if self._codec == "mov_text":
            stream = output.add_stream("mov_text")
            stream.codec_context.subtitle_header = MOV_TEXT_HEADER
            stream.codec_context.time_base = MILLISECOND
            stream.time_base = MILLISECOND
            return stream
        if self._codec == self._source_codec:
            return output.add_stream_from_template(source)
        return output.add_mux_stream(self._codec, time_base=MILLISECOND)


def name_track(source: Any, made: Any) -> None:
    """Give an output stream the language, title and disposition of its source."""
    made.metadata.update(
        {key: value for key, value in source.metadata.items() if key in ("language", "title")}
    )
    made.disposition = source.disposition


def plain_text(data: bytes, codec: str) -> str:
    """Return the words of one text subtitle.

    Args:
        data: Bytes of a packet.
        codec: FFmpeg's name of its codec.
    """
    if codec == "mov_text":
        data = data[2 : 2 + int.from_bytes(data[:2], "big")]
    text = data.decode("utf-8", errors="replace")
    if codec in ("ass", "ssa"):
        # ReadOrder, Layer, Style, Name, MarginL, MarginR, MarginV, Effect, Text
        text = text.split(",", 8)[-1]
        return re.sub(r"\{[^}]*\}", "", text).replace(r"\N", "\n").replace(r"\n", "\n")
    if codec in ("subrip", "srt", "webvtt"):
        return re.sub(r"</?[a-zA-Z][^>]*>", "", text).replace("\r\n", "\n")
    return text


def _pack(text: str, codec: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data if codec == "mov_text" else data
