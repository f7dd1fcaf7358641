"""Ranges of frames of one file as arrays: decode, deinterlace, convert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from av.video.frame import VideoFrame

from latentloom.errors import MediaError
from latentloom.media.child.channel import Channel
from latentloom.media.child.deinterlace import deinterlace
from latentloom.media.child.picture import Picture
from latentloom.media.child.source import FrameSource
from latentloom.schemas.media import Fit, VideoInfo


class Reader:
    """What a FrameReader of the parent has here."""

    def __init__(
        self,
        path: str,
        info: VideoInfo,
        *,
        width: int | None,
        height: int | None,
        fit: Fit,
        deinterlace: bool,
        high_bit_depth: bool,
        on_damage: Literal["error", "hold"],
    ) -> None:
        self._path = path
        self._info = info
        self._source = FrameSource(path, info)
        keep = width is None and height is None
        size = info.output_size(width, height)
        self._picture = Picture(info, size, keep, fit, high_bit_depth)
        self._deinterlace = deinterlace
        self._hold = on_damage == "hold"

    def read(self, start: int, stop: int, channel: Channel) -> None:
        """Send the frames of a range to the parent.

        Args:
            start: First frame.
            stop: One past the last frame.
            channel: The way to the parent.
        """
        for index, frame in self._frames(start, stop, channel):
            channel.frame(index - start, index, self._picture.render(frame))

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _frames(self, start: int, stop: int, channel: Channel) -> Iterator[tuple[int, VideoFrame]]:
        if self._deinterlace:
            yield from deinterlace(lambda at: self._get(at, channel), self._info, start, stop)
        else:
            for index in range(start, stop):
                yield index, self._get(index, channel)

    def _get(self, index: int, channel: Channel) -> VideoFrame:
        frame = self._source.get(index, channel)
        if frame is None and self._hold:
            frame = self._source.get_before(index, channel)
        if frame is None:
            raise MediaError(
                f"{self._path!r}: frame {index} of {self._info.num_frames} cannot be decoded; the "
                "file is damaged there. Copy it again, cut that part out, or set "
                "source.on_damage: hold to repeat the frame before it."
            )
        return frame
