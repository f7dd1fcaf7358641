"""Segments to one file by packet copy, with the sound, subtitles and chapters of the source."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import Container, InputContainer
from av.packet import Packet
from av.stream import Disposition

from latentloom.errors import MediaError
from latentloom.media.child import containers, files
from latentloom.media.child.aac import AacTrack
from latentloom.media.child.channel import Channel
from latentloom.media.child.encoder import (
    ENCODERS,
    configure,
    extradata_digest,
    max_delay,
    open_encoder,
)
from latentloom.media.child.inspect import count_packets, video_times
from latentloom.media.child.tracks import CopiedTrack, Cut, TextTrack, Track
from latentloom.media.segments import Segment, parse_segment
from latentloom.schemas.media import EncodeSettings, JoinReport, VideoInfo

MUXER_OPTIONS = {
    "mp4": {"movflags": "+faststart+use_metadata_tags"},
    "mov": {"movflags": "+faststart+use_metadata_tags"},
    "matroska": {},
}
SEEK_MARGIN_SECONDS = 10
"""How far before the cut the source is read: sound lies near its pictures, not beside them."""


class Joiner:
    """One output file while it grows."""

    def __init__(
        self,
        *,
        path: str,
        suffix: str,
        info: VideoInfo,
        settings: EncodeSettings,
        source: str | None,
        first_frame: int,
        last_frame: int,
        audio: str,
        metadata: dict[str, str],
        channel: Channel,
    ) -> None:
        self._path = path
        self._info = info
        self._settings = settings
        self._container = containers.format_of(suffix)
        base = info.pts[first_frame]
        self._pts = [pts - base for pts in info.pts[first_frame:last_frame]]
        self._place = {pts: index for index, pts in enumerate(self._pts)}
        self._base = base
        self._end = info.end_pts(last_frame) - base
        self._num_packets = 0
        stop = info.end_pts(last_frame) * info.tick if last_frame < info.num_frames else None
        self._cut = Cut(base * info.tick, stop, self._container != "matroska")
        self._tracks: dict[int, Track] = {}
        self._reencoded: list[int] = []
        self._dropped: list[str] = []
        self._input: InputContainer | None = None
        self._output = av.open(
            path, "w", format=self._container, container_options=self._muxer_options()
        )
        self._output.metadata.update({**info.metadata, **metadata})
        self._video = self._add_video()
        self._delay = max_delay(self._video.codec_context, settings)
        if source is not None:
            self._input = files.open_input(source)
            self._add_tracks(self._input, audio)
        self._output.set_chapters(self._chapters())
        self._sound = self._read_sound(channel)
        self._waiting: Packet[Any] | None = None
        self._start()

    def push(self, data: bytes, channel: Channel) -> None:
        """Append one segment.

        Args:
            data: What an Encoder made.
            channel: Told of progress.
        """
        segment = parse_segment(data)
        self._check(segment)
        for coded in segment.packets:
            index = self._place[coded.pts - self._base]
            packet: Packet[Any] = Packet(coded.data)
            packet.time_base = self._info.tick
            packet.pts = self._pts[index]
            packet.dts = self._dts(self._num_packets)
            packet.duration = self._next(index) - packet.pts
            packet.is_keyframe = coded.is_key
            packet.stream = self._video
            self._copy_sound(packet.dts * self._info.tick)
            self._output.mux(packet)
            self._num_packets += 1
            channel.progress(self._num_packets)

    def finish(self, channel: Channel) -> JoinReport:
        """Complete the file, read it again, report."""
        if self._num_packets != len(self._pts):
            raise MediaError(
                f"{self._num_packets} frames are encoded of {len(self._pts)}. "
                "Run the command again."
            )
        self._copy_sound(None)
        self._close()
        times = video_times(self._path, channel)
        wanted = [pts * self._info.tick for pts in self._pts]
        # Matroska counts milliseconds, mp4 and mov the ticks of the source.
        slack = Fraction(1, 1000) if self._container == "matroska" else Fraction(0)
        if len(times) != len(wanted) or any(
            abs(a - b) > slack for a, b in zip(times, wanted, strict=True)
        ):
            self.abort()
            raise MediaError(
                f"{self._path!r} reads back as {len(times)} frames of {len(wanted)}, or at other "
                "times. Write it again; if that does not help, choose another container."
            )
        return self._report(channel)

    def abort(self) -> None:
        """Close and remove the unfinished file."""
        with suppress(av.FFmpegError, ValueError):
            self._close()
        Path(self._path).unlink(missing_ok=True)

    def _muxer_options(self) -> dict[str, str]:
        options = {"fflags": "+bitexact", **MUXER_OPTIONS[self._container]}
        if self._container != "matroska":
            options["video_track_timescale"] = str(self._info.tick.denominator)
        return options

    def _add_video(self) -> Any:
        settings = self._settings
        if settings.time_base != self._info.time_base:
            raise MediaError(
                f"segments count in {settings.time_base} s, their source in {self._info.time_base}"
            )
        stream: Any = self._output.add_stream(
            ENCODERS[settings.codec], rate=Fraction(*settings.frame_rate)
        )
        configure(stream.codec_context, settings)
        if settings.codec == "h265" and self._container != "matroska":
            # Apple's players take no other tag.
            stream.codec_context.codec_tag = "hvc1"
        stream.time_base = self._info.tick
        stream.disposition = Disposition.default
        open_encoder(stream.codec_context, settings)
        return stream

    def _add_tracks(self, source: InputContainer, audio: str) -> None:
        for track in self._info.audio if audio != "none" else ():
            stream = source.streams[track.index]
            if containers.audio_codec(track, self._container, audio) == "copy":
                self._tracks[track.index] = CopiedTrack(stream, self._output, self._cut)
            else:
                self._tracks[track.index] = AacTrack(stream, self._output, self._cut)
                self._reencoded.append(track.index)
        for subtitle in self._info.subtitles:
            if not subtitle.text:
                self._dropped.append(f"subtitles {subtitle.index} ({subtitle.codec}): no text")
                continue
            codec = containers.subtitle_codec(subtitle, self._container)
            stream = source.streams[subtitle.index]
            self._tracks[subtitle.index] = TextTrack(stream, self._output, self._cut, codec)

    def _start(self) -> None:
        try:
            self._output.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            self.abort()
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise MediaError(
                    f"{self._path!r} cannot be written: {error.strerror}. Check its folder."
                ) from error
            raise MediaError(
                f"{self._path!r}: the {self._container} container refuses these streams: {error}. "
                "Name the output .mkv, or set output.audio: aac."
            ) from error

    def _chapters(self) -> list[Any]:
        offset, end = float(self._cut.start), float(self._end * self._info.tick)
        made: list[Any] = []
        for chapter in self._info.chapters:
            start = max(0.0, chapter.start_seconds - offset)
            stop = min(end, chapter.end_seconds - offset)
            if start < stop:
                made.append(
                    {
                        "id": len(made) + 1,
                        "start": round(start * 1000),
                        "end": round(stop * 1000),
                        "time_base": Fraction(1, 1000),
                        "metadata": {"title": chapter.title} if chapter.title else {},
                    }
                )
        return made

    def _check(self, segment: Segment) -> None:
        """Refuse a segment that is not the next one, or was encoded with other settings."""
        stop = self._num_packets + len(segment.packets)
        wanted = [pts + self._base for pts in self._pts[self._num_packets : stop]]
        if sorted(p.pts for p in segment.packets) != wanted:
            raise MediaError(
                f"a segment does not hold frames {self._num_packets}:{stop} of the output. "
                "Give segments in order, without gaps."
            )
        context = self._video.codec_context
        same = (
            segment.codec == self._settings.codec
            and segment.time_base == self._settings.time_base
            and segment.extradata_sha256 == extradata_digest(context)
            and segment.delay == self._delay
        )
        if not same:
            raise MediaError(
                f"a segment ({segment.codec}) was encoded with other settings or another PyAV than "
                "the output has. Encode all segments anew."
            )

    def _dts(self, index: int) -> int:
        """Return when the packet ``index`` is decoded, so that it rises through all segments.

        The encoder's own dts start anew with each segment, and may fall at a join where the frame
        rate varies. Presentation times, moved by the reorder depth, never do.
        """
        delay = self._delay
        if index >= delay:
            return self._pts[index - delay]
        return (index - delay) * (self._next(0) - self._pts[0])

    def _next(self, index: int) -> int:
        return self._pts[index + 1] if index + 1 < len(self._pts) else self._end

    def _copy_sound(self, until: Fraction | None) -> None:
        """Mux what comes before a moment of the output; all the rest, without one."""
        while True:
            packet = self._waiting or next(self._sound, None)
            if packet is None:
                return
            if until is not None and (packet.dts or 0) * packet.time_base > until:
                self._waiting = packet
                return
            self._waiting = None
            self._output.mux(packet)

    def _read_sound(self, channel: Channel) -> Iterator[Packet[Any]]:
        if self._input is None or not self._tracks:
            return
        start = self._cut.start - SEEK_MARGIN_SECONDS
        if start > 0 and not self._info.subtitles:
            # A subtitle that is still shown may begin much earlier: then read from the start.
            with suppress(av.FFmpegError):
                self._input.seek(int(start * av.time_base))
        streams = [self._input.streams[index] for index in self._tracks]
        for packet in _demux(self._input, streams):
            channel.progress(self._num_packets)
            yield from self._tracks[packet.stream.index].feed(packet)

    def _close(self) -> None:
        self._sound = iter(())
        containers_: list[Container | None] = [self._output, self._input]
        for container in containers_:
            if container is not None:
                container.close()

    def _report(self, channel: Channel) -> JoinReport:
        kinds = count_packets(self._path, channel)
        return JoinReport(
            num_frames=len(self._pts),
            duration_seconds=float(self._end * self._info.tick),
            audio=tuple(codec for kind, codec, _ in kinds if kind == "audio"),
            reencoded_audio=tuple(self._reencoded),
            subtitles=tuple(codec for kind, codec, _ in kinds if kind == "subtitle"),
            num_packets=tuple(number for kind, _, number in kinds if kind != "data"),
            num_chapters=len(self._chapters()),
            dropped=tuple(self._dropped),
        )


def _demux(source: InputContainer, streams: list[Any]) -> Iterator[Packet[Any]]:
    """Yield packets up to where the source breaks; its pictures were readable, so keep those."""
    try:
        yield from source.demux(streams)
    except av.FFmpegError:
        return
