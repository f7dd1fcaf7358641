"""Open local media files and nothing else: no address, no playlist, no device."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentloom.errors import MediaError

FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,nut,mxf,asf,gif,ivf,h264,"
    "hevc,m4v,obu,yuv4mpegpipe,dv,wtv,rm,apng,rawvideo,mjpeg,vc1,cavsvideo,nsv,gxf,swf,bink,wav,"
    "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,tiff_pipe"
)
"""Containers that hold their own media, and single pictures; not playlists, image patterns or scripts."""
MAX_PIXELS = 8192 * 8192
"""Largest picture that is decoded."""


@contextmanager
def open_file(path: str) -> Iterator[InputContainer]:
    """Open a local file for reading, and close it.

    Args:
        path: Path of a regular file.

    Raises:
        MediaError: There is no such file, or it is not media.
    """
    container = open_input(path)
    try:
        yield container
    finally:
        container.close()


def open_input(path: str) -> InputContainer:
    """Open a local file for reading; the caller closes it.

    Args:
        path: Path of a regular file.

    Raises:
        MediaError: There is no such file, or it is not media.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise MediaError(f"{path!r}: {error.strerror}. Check the path.") from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path!r} is not a regular file. Give the path of a video file.")
    if not status.st_size:
        raise MediaError(f"{path!r} is empty. Copy it again from where it came.")
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        return av.open(
            "file:" + os.path.abspath(path),
            "r",
            container_options=options,
            metadata_errors="replace",
        )
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{path!r} cannot be opened as a video: {_reason(error)}. "
            "It is damaged, incomplete, or of an unknown format; copy or convert it."
        ) from error


def choose_video(
    container: InputContainer, path: str, wanted: int | None, max_pixels: int
) -> VideoStream:
    """Return the wanted video stream, or the first that is not a cover picture.

    Args:
        container: An open file.
        path: Its path, for errors.
        wanted: Index of a stream in the file.
        max_pixels: Largest picture that may be decoded.

    Raises:
        MediaError: There is none, or it cannot be decoded.
    """
    videos = container.streams.video
    if wanted is None:
        films = [s for s in videos if not s.disposition & Disposition.attached_pic]
    else:
        films = [s for s in videos if s.index == wanted]
    if not films:
        there = ", ".join(str(s.index) for s in videos) or "none"
        which = "no video stream" if wanted is None else f"no video stream {wanted}"
        raise MediaError(f"{path!r} has {which}; video streams: {there}.")
    stream = films[0]
    if cast("object", stream.codec_context) is None:
        raise MediaError(
            f"{path!r}: video stream {stream.index} has a codec that is not known here. "
            "Convert the file to H.264 or FFV1 first."
        )
    size = stream.codec_context.width, stream.codec_context.height
    if 0 in size or stream.codec_context.pix_fmt is None:
        raise MediaError(
            f"{path!r}: video stream {stream.index} ({stream.codec_context.name}) is damaged: "
            "its picture size cannot be found. Copy or convert the file."
        )
    if size[0] * size[1] > max_pixels:
        raise MediaError(
            f"{path!r}: {size[0]}x{size[1]} pixels are more than the {max_pixels} allowed. "
            "Scale the video down first."
        )
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    stream.codec_context.thread_count = 1
    return stream


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of a stream and the final, empty one, up to where the file breaks.

    Args:
        container: An open file.
        stream: One of its streams.
    """
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        return


def decode(packet: Packet[VideoStream]) -> list[VideoFrame]:
    """Return the sound frames that a packet completes; what is damaged gives none.

    Args:
        packet: A packet of a video stream.
    """
    try:
        return [frame for frame in packet.decode() if not frame.is_corrupt]
    except av.FFmpegError as error:
        if error.errno == errno.ENOMEM:
            raise
        return []
