"""What is known of a video file, and how one is written. Facts only: nothing here opens a file."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Fit = Literal["cover", "contain", "stretch"]
AudioMode = Literal["auto", "copy", "aac", "none"]
ColorRange = Literal["unspecified", "limited", "full"]
VideoCodec = Literal["h264", "h265", "ffv1", "prores"]
UNSPECIFIED = 2
"""ITU-T H.273's code point for a colour property that the file does not name."""
HD_HEIGHT = 720
"""From this height on, players take untagged video for BT.709, below for BT.601."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ColorTags(_Facts):
    """How RGB is coded in a stream; numbers are code points of ITU-T H.273."""

    range: ColorRange = "unspecified"
    """Whether black and white are 16 and 235 (limited) or 0 and 255 (full)."""
    matrix: int = UNSPECIFIED
    """YUV matrix: 1 BT.709, 5 and 6 BT.601, 9 BT.2020."""
    transfer: int = UNSPECIFIED
    """Transfer curve: 1 BT.709, 13 sRGB, 16 PQ, 18 HLG."""
    primaries: int = UNSPECIFIED
    """Primaries: 1 BT.709, 5 and 6 BT.601, 9 BT.2020."""

    def resolve(self, height: int) -> ColorTags:
        """Fill in what players assume where range and matrix are not named.

        Args:
            height: Height of the coded picture in pixels.
        """
        guess = 1 if height >= HD_HEIGHT else 6
        return self.model_copy(
            update={
                "range": "limited" if self.range == "unspecified" else self.range,
                "matrix": guess if self.matrix == UNSPECIFIED else self.matrix,
            }
        )


class AudioInfo(_Facts):
    """One audio stream."""

    index: int
    """Index of the stream in the file."""
    codec: str
    """FFmpeg's name of the codec."""
    sample_rate: int
    """Samples a second."""
    channels: int
    """Number of channels."""
    language: str | None = None
    """ISO 639 code, if the file names one."""
    title: str | None = None
    """Title, if the file names one."""


class SubtitleInfo(_Facts):
    """One subtitle stream."""

    index: int
    """Index of the stream in the file."""
    codec: str
    """FFmpeg's name of the codec."""
    text: bool
    """Text, which can be copied; not pictures, which cannot."""
    language: str | None = None
    """ISO 639 code, if the file names one."""
    title: str | None = None
    """Title, if the file names one."""


class Chapter(_Facts):
    """One chapter, in seconds of the file's own clock."""

    start_seconds: float
    """First moment."""
    end_seconds: float
    """First moment after it."""
    title: str = ""
    """Name of the chapter."""


class VideoInfo(_Facts):
    """One video stream with the index of all its frames, and what accompanies it."""

    format_name: str
    """FFmpeg's name of the container."""
    stream: int
    """Index of the video stream in the file."""
    codec: str
    """FFmpeg's name of the decoder."""
    width: int = Field(ge=1)
    """Coded width in pixels, before rotation."""
    height: int = Field(ge=1)
    """Coded height in pixels, before rotation."""
    rotation: Literal[0, 90, 180, 270] = 0
    """Counter-clockwise turn, in degrees, that shows the picture upright."""
    sample_aspect_ratio: tuple[int, int] = (1, 1)
    """Width to height of one coded pixel, before rotation."""
    pix_fmt: str
    """FFmpeg's name of the pixel format."""
    bit_depth: int = 8
    """Bits of one colour component."""
    interlaced: bool = False
    """Whether frames hold two fields."""
    field_order: Literal["progressive", "top", "bottom"] = "progressive"
    """Which field comes first."""
    color: ColorTags = ColorTags()
    """Colour tags as the file has them."""
    time_base: tuple[int, int]
    """Seconds of one tick of pts, as a fraction."""
    pts: tuple[int, ...] = Field(min_length=1)
    """Presentation time of every frame, in ticks, strictly increasing."""
    last_duration: int = Field(ge=1)
    """Duration of the last frame, in ticks."""
    keyframes: tuple[int, ...] = ()
    """Indices of frames at which decoding can start."""
    counted: bool = False
    """Frames cannot be told apart by the file's own times: they are counted from its start."""
    missing_frames: int = 0
    """Frames at the end that the container promises and does not hold (on_damage: hold)."""
    audio: tuple[AudioInfo, ...] = ()
    """All audio streams."""
    subtitles: tuple[SubtitleInfo, ...] = ()
    """All subtitle streams."""
    chapters: tuple[Chapter, ...] = ()
    """All chapters."""
    metadata: dict[str, str] = {}
    """Tags of the container that describe the work, such as its title."""

    @property
    def num_frames(self) -> int:
        """Number of frames of the whole stream."""
        return len(self.pts)

    @property
    def tick(self) -> Fraction:
        """Seconds of one tick, exactly."""
        return Fraction(*self.time_base)

    @property
    def display_width(self) -> int:
        """Width in pixels after rotation."""
        return self.height if self.rotation in (90, 270) else self.width

    @property
    def display_height(self) -> int:
        """Height in pixels after rotation."""
        return self.width if self.rotation in (90, 270) else self.height

    @property
    def display_aspect_ratio(self) -> Fraction:
        """Width to height of the picture as it is shown."""
        aspect = Fraction(*self.sample_aspect_ratio)
        if self.rotation in (90, 270):
            aspect = 1 / aspect
        return Fraction(self.display_width, self.display_height) * aspect

    @property
    def frame_rate(self) -> float:
        """Mean frames a second; says nothing about single frames of a variable rate."""
        return self.num_frames / float((self.end_pts(self.num_frames) - self.pts[0]) * self.tick)

    def output_size(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Return the size of read frames: coded size by default, one side by aspect ratio.

        Args:
            width: Width in pixels, or None.
            height: Height in pixels, or None.
        """
        if width is None and height is None:
            return self.display_width, self.display_height
        if width is None:
            width = max(1, round(Fraction(height or 1) * self.display_aspect_ratio))
        if height is None:
            height = max(1, round(Fraction(width) / self.display_aspect_ratio))
        return width, height

    def output_aspect(self, width: int | None, height: int | None) -> tuple[int, int]:
        """Return the aspect ratio of one pixel of read frames: square, but for the source's size.

        Args:
            width: Width in pixels, or None.
            height: Height in pixels, or None.
        """
        if width is not None or height is not None:
            return (1, 1)
        num, den = self.sample_aspect_ratio
        return (den, num) if self.rotation in (90, 270) else (num, den)

    def end_pts(self, stop: int) -> int:
        """Return the tick at which frame ``stop - 1`` ends.

        Args:
            stop: One past a frame's index, in [1, num_frames].
        """
        return self.pts[stop] if stop < self.num_frames else self.pts[-1] + self.last_duration

    def faster(self, rate: int) -> VideoInfo:
        """Return the index of a video that shows ``rate`` frames in the time of each of this one.

        Its ticks are finer by the same factor, so that every moment is exact, however uneven they are.
        """
        if rate == 1:
            return self
        ends = (*self.pts[1:], self.end_pts(self.num_frames))
        pts = tuple(
            rate * start + k * (end - start)
            for start, end in zip(self.pts, ends, strict=True)
            for k in range(rate)
        )
        num, den = (self.tick / rate).as_integer_ratio()
        return self.model_copy(
            update={
                "time_base": (num, den),
                "pts": pts,
                "last_duration": self.last_duration,
                "keyframes": tuple(rate * frame for frame in self.keyframes),
            }
        )

    def seconds(self, frame: int) -> float:
        """Return when a frame starts, in seconds after the first one.

        Args:
            frame: Frame index; ``num_frames`` gives the end.
        """
        ticks = self.pts[frame] if frame < self.num_frames else self.end_pts(self.num_frames)
        return float((ticks - self.pts[0]) * self.tick)

    def frame_range(self, start_seconds: float, end_seconds: float | None) -> tuple[int, int]:
        """Return the frames that start in [start, end), a half-open range that may be empty.

        Args:
            start_seconds: Seconds after the first frame.
            end_seconds: Seconds after the first frame; None is the end of the stream.
        """
        start = int(np.searchsorted(self._ticks, _ceil_ticks(start_seconds, self.tick)))
        if end_seconds is None:
            return start, self.num_frames
        stop = int(np.searchsorted(self._ticks, _ceil_ticks(end_seconds, self.tick)))
        return start, max(start, stop)

    @cached_property
    def _ticks(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.asarray(self.pts, dtype=np.int64) - self.pts[0]


class EncodeSettings(_Facts):
    """How a video is encoded; option names are ffmpeg's own."""

    codec: VideoCodec = "h264"
    """Codec of the video stream."""
    width: int = Field(ge=1, le=16384)
    """Width in pixels."""
    height: int = Field(ge=1, le=16384)
    """Height in pixels."""
    time_base: tuple[int, int]
    """Seconds of one tick of pts, as a fraction."""
    frame_rate: tuple[int, int] = (25, 1)
    """Nominal frames a second, for the encoder's rate control; pts rule."""
    high_bit_depth: bool = False
    """Frames are uint16; encode more than 8 bits where the codec can."""
    crf: float | None = Field(default=None, ge=0, le=63)
    """Constant rate factor of h264 and h265."""
    preset: str | None = None
    """Preset of h264 and h265."""
    tune: str | None = None
    """Tune of h264 and h265."""
    profile: str | None = None
    """Profile of the codec."""
    pix_fmt: str | None = None
    """Pixel format; None takes one that fits the codec, depth and size."""
    threads: int = Field(default=1, ge=1, le=64)
    """Encoder threads; another number gives other bytes."""
    extra: dict[str, str] = {}
    """More options for the encoder, as ffmpeg names them."""
    color: ColorTags = ColorTags()
    """Colour tags to write; the matrix and range are also what RGB is converted with."""
    sample_aspect_ratio: tuple[int, int] = (1, 1)
    """Width to height of one pixel."""

    @model_validator(mode="after")
    def _check_extra(self) -> EncodeSettings:
        taken = sorted(set(self.extra) & RESERVED_OPTIONS)
        if taken:
            raise ValueError(
                f"extra: {', '.join(taken)} cannot be set here; use the field of that name, "
                "if there is one"
            )
        return self


RESERVED_OPTIONS = frozenset(
    {"crf", "preset", "tune", "profile", "pix_fmt", "threads", "flags", "time_base", "passlogfile"}
    | {"pass", "stats", "x264-stats", "dump_extra", "forced-idr"}
)
"""Options that belong to a field, break exact joins, or name files."""


class JoinReport(_Facts):
    """What a joined file holds, found by reading it again."""

    num_frames: int
    """Video frames."""
    duration_seconds: float
    """From the first frame's start to the last one's end."""
    audio: tuple[str, ...] = ()
    """Codec of each audio stream."""
    reencoded_audio: tuple[int, ...] = ()
    """Source indices of audio streams that were encoded anew."""
    subtitles: tuple[str, ...] = ()
    """Codec of each subtitle stream."""
    num_packets: tuple[int, ...] = ()
    """Packets of each stream, video first."""
    num_chapters: int = 0
    """Chapters."""
    dropped: tuple[str, ...] = ()
    """Streams of the source that were left out, and why."""


def _ceil_ticks(seconds: float, tick: Fraction) -> int:
    """Round up, forgiving what a decimal second loses as a binary float."""
    exact = Fraction(seconds).limit_denominator(1_000_000_000) / tick
    return -((-exact.numerator) // exact.denominator)
