"""Decoded frames by index: seek to the key frame before, decode forward, match by pts.

A frame is asked for by its index and found by its pts, so a seek that lands elsewhere, frames
before an open group of pictures and frames that an edit list hides can do no harm.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentloom.media.child import files
from latentloom.media.child.channel import Channel
from latentloom.schemas.media import VideoInfo

NUM_KEPT = 8
"""Frames kept behind the last one, so that a deinterlacer's context needs no seek."""
NUM_RETRIES = 2
"""Earlier key frames tried before a frame counts as missing."""
MAX_SKIP = 32
"""Frames decoded in vain rather than seeking to a key frame that is nearer."""


class FrameSource:
    """One open file with a place in it; reading on from there needs no seek."""

    def __init__(self, path: str, info: VideoInfo) -> None:
        self._path = path
        self._info = info
        self._index_of = {pts: index for index, pts in enumerate(info.pts)}
        self._opened: tuple[InputContainer, VideoStream] | None = None
        self._pass: Iterator[tuple[int, VideoFrame]] = iter(())
        self._kept: deque[tuple[int, VideoFrame]] = deque(maxlen=NUM_KEPT)

    def get(self, index: int, channel: Channel) -> VideoFrame | None:
        """Return a frame, or None if the file does not give it.

        Args:
            index: Frame index.
            channel: Told of progress.
        """
        if self._is_ahead(index) and self._advance(index, channel):
            return self._find(index)
        for start in self._starts(index)[: NUM_RETRIES + 1]:
            if self._go(start, index, channel):
                break
        return self._find(index)

    def get_before(self, index: int, channel: Channel) -> VideoFrame | None:
        """Return the last frame before a missing one, or the first after it if there is none.

        Args:
            index: Index of a missing frame.
            channel: Told of progress.
        """
        for start in self._starts(index):
            before = [frame for at, frame in self._kept if at < index]
            if before:
                return before[-1]
            self._go(start, index, channel)
        before = [frame for at, frame in self._kept if at < index]
        if before:
            return before[-1]
        self._go(0, index, channel)
        return self._kept[-1][1] if self._kept else None

    def close(self) -> None:
        """Close the file."""
        self._pass = iter(())
        self._kept.clear()
        if self._opened is not None:
            self._opened[0].close()
            self._opened = None

    def _is_ahead(self, index: int) -> bool:
        """Whether decoding on reaches the frame, without a key frame that is a shorter way."""
        if not self._kept or index <= self._kept[-1][0]:
            return bool(self._kept) and self._find(index) is not None
        at = self._kept[-1][0]
        return index - at <= MAX_SKIP or self._starts(index)[0] <= at

    def _find(self, index: int) -> VideoFrame | None:
        return next((frame for at, frame in self._kept if at == index), None)

    def _starts(self, index: int) -> list[int]:
        """Return where decoding can start to reach a frame: nearest first, 0 last."""
        keys = self._info.keyframes
        return [key for key in reversed(keys[: bisect_right(keys, index)]) if key > 0] + [0]

    def _key_of(self, index: int) -> int:
        """Return the key frame that a frame depends on; -1 before the first."""
        at = bisect_right(self._info.keyframes, index)
        return self._info.keyframes[at - 1] if at else -1

    def _go(self, start: int, index: int, channel: Channel) -> bool:
        self._kept.clear()
        self._pass = self._decode_from(start, channel)
        return self._advance(index, channel)

    def _advance(self, index: int, channel: Channel) -> bool:
        """Decode up to a frame or past it; say whether it was met."""
        while not self._kept or self._kept[-1][0] < index:
            step = next(self._pass, None)
            if step is None:
                return False
            channel.progress(step[0])
            self._kept.append(step)
        return self._find(index) is not None

    def _decode_from(self, start: int, channel: Channel) -> Iterator[tuple[int, VideoFrame]]:
        """Yield frames with their indices, in order, from a key frame or the file's start on."""
        container, stream = self._seek(start)
        last = last_key = -1
        for packet in files.demux(container, stream):
            channel.progress(max(last, 0))
            for frame in files.decode(packet):
                index = last + 1 if self._info.counted else self._index_of.get(frame.pts or 0)
                if index is not None and last < index < self._info.num_frames:
                    last = index
                    key = self._key_of(index)
                    if index == key:
                        last_key = key
                    # Without its key frame a group decodes to what came before it: to another
                    # picture, if reading began elsewhere.
                    if key == last_key:
                        yield index, frame

    def _seek(self, start: int) -> tuple[InputContainer, VideoStream]:
        """Go to a key frame; open the file anew for its start, or where it cannot seek."""
        container, stream = self._opened or self._open()
        if start > 0:
            try:
                container.seek(self._info.pts[start], stream=stream)
            except av.FFmpegError:
                pass
            else:
                return container, stream
        return self._open()

    def _open(self) -> tuple[InputContainer, VideoStream]:
        if self._opened is not None:
            self._opened[0].close()
        container = files.open_input(self._path)
        stream = files.choose_video(container, self._path, self._info.stream, files.MAX_PIXELS)
        self._opened = container, stream
        return self._opened
