"""The index of all frames of a file: exact pts, and where decoding can start.

Packets tell it without decoding. Where they cannot be trusted the whole file is decoded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from latentloom.errors import MediaError
from latentloom.media.child import facts, files
from latentloom.media.child.channel import Channel
from latentloom.schemas.media import VideoInfo

ONE_TO_ONE = frozenset(
    name
    for names in (
        "h264 hevc av1 libdav1d libaom-av1 vp9 libvpx-vp9 prores ffv1 mjpeg dnxhd rawvideo png gif",
        "mpeg1video mpeg2video huffyuv ffvhuff utvideo v210 theora vc1 wmv3 hap cfhd jpeg2000",
    )
    for name in names.split()
)
"""Decoders that give one frame for one packet; with others the whole file is decoded."""
HEAD_FRAMES = 8
"""Frames decoded while probing, to see that the file decodes at all and where it starts."""
TRUNCATED = ("File ended prematurely", "partial file")
"""What FFmpeg logs, without failing, about a file that was cut off; Matroska logs all damage."""


@dataclass(frozen=True)
class _Packets:
    """Facts of all packets of one stream, in file order; discarded ones apart."""

    pts: tuple[int | None, ...]
    keys: frozenset[int]
    first_key: int | None
    durations: dict[int, int]
    num_lost: int
    is_cut: bool


def probe(
    channel: Channel, path: str, video_stream: int | None, max_pixels: int, on_damage: str
) -> VideoInfo:
    """Look at a whole file.

    Args:
        channel: Told of progress.
        path: Path of the file.
        video_stream: Index of the video stream, or None for the first that is no cover picture.
        max_pixels: Largest picture that may be decoded.
        on_damage: "error", or "hold" to index frames that a cut-off file only promises.

    Raises:
        MediaError: The file is missing, damaged, or holds no frame.
    """
    with files.open_file(path) as container:
        stream = files.choose_video(container, path, video_stream, max_pixels)
        found = facts.of_file(container, stream)
        tick = stream.time_base or Fraction(1, 1000)
        step = _frame_ticks(stream, tick)
        packets = _read_packets(channel, container, stream, path)
    _check_whole(packets, path, on_damage)
    head = _decode(channel, path, video_stream, max_pixels, HEAD_FRAMES, packets.first_key)
    if not head:
        raise MediaError(
            f"{path!r}: no frame of video stream {found['stream']} can be decoded. "
            "The file is damaged or empty; copy or convert it."
        )
    pts, counted = _trusted_pts(packets, head, found["codec"]), False
    if pts is None:
        frames = _decode(channel, path, video_stream, max_pixels, None, None)
        pts, counted = _decoded_pts(frames, packets, step)
    pts, num_missing = _promise(pts, packets.num_lost, step)
    return VideoInfo(
        **{**found, **facts.of_frame(head[0].frame)},
        time_base=(tick.numerator, tick.denominator),
        pts=pts,
        last_duration=packets.durations.get(pts[-1]) or step,
        keyframes=() if counted else tuple(i for i, at in enumerate(pts) if at in packets.keys),
        counted=counted,
        missing_frames=num_missing,
    )


@dataclass(frozen=True)
class _Decoded:
    pts: int | None
    frame: VideoFrame


def _read_packets(
    channel: Channel, container: InputContainer, stream: VideoStream, path: str
) -> _Packets:
    pts: list[int | None] = []
    keys: set[int] = set()
    durations: dict[int, int] = {}
    first_key: int | None = None
    num_packets = 0
    broken = False
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as logs:
            try:
                for packet in container.demux(stream):
                    if packet.pts is None and packet.dts is None and not packet.size:
                        continue
                    channel.progress(num_packets)
                    num_packets += 1
                    if packet.is_keyframe and first_key is None:
                        first_key = packet.pts
                    if packet.is_discard:
                        continue
                    pts.append(packet.pts)
                    if packet.pts is not None:
                        durations[packet.pts] = packet.duration or 0
                        if packet.is_keyframe:
                            keys.add(packet.pts)
            except av.FFmpegError:
                broken = True
    finally:
        av.logging.set_level(None)
    broken = broken or any(
        "matroska" in name or any(text in line for text in TRUNCATED) for _, name, line in logs
    )
    lost = 0
    if "mov" in container.format.name:
        lost = max(0, len(stream.index_entries) - num_packets)
    if container.format.name == "avi":
        broken = broken or _is_cut_riff(path)
    return _Packets(tuple(pts), frozenset(keys), first_key, durations, lost, broken or lost > 0)


def _check_whole(packets: _Packets, path: str, on_damage: str) -> None:
    if not packets.pts:
        raise MediaError(f"{path!r} holds no frame of video. Choose another file or stream.")
    if packets.is_cut and on_damage == "error":
        lost = f", {packets.num_lost} of its frames are missing" if packets.num_lost else ""
        raise MediaError(
            f"{path!r} is damaged or cut off after frame {len(packets.pts) - 1}{lost}. Copy it again, or set "
            "source.on_damage: hold to use what is there."
        )


def _decode(
    channel: Channel,
    path: str,
    video_stream: int | None,
    max_pixels: int,
    limit: int | None,
    first_key: int | None,
) -> list[_Decoded]:
    """Decode from the start; with a limit, that many frames from the first key frame on."""
    found: list[_Decoded] = []
    with files.open_file(path) as container:
        stream = files.choose_video(container, path, video_stream, max_pixels)
        num_counted = 0
        for packet in files.demux(container, stream):
            for frame in files.decode(packet):
                channel.progress(len(found))
                # One picture is enough: a whole file of them would not fit in memory.
                found.append(_Decoded(frame.pts, frame if not found else found[0].frame))
                num_counted += first_key is None or (frame.pts or 0) >= first_key
            if limit is not None and num_counted >= limit:
                break
    return found


def _trusted_pts(packets: _Packets, head: list[_Decoded], codec: str) -> tuple[int, ...] | None:
    """Return the packets' pts in order, less what cannot be decoded before the first key frame."""
    known = [at for at in packets.pts if at is not None]
    if codec not in ONE_TO_ONE or len(set(known)) != len(packets.pts) or not packets.keys:
        return None
    decoded = {shown.pts for shown in head}
    first_key = packets.first_key
    pts = sorted(at for at in known if first_key is None or at >= first_key or at in decoded)
    # Two packets a frame (fields), or times that the decoder does not agree with.
    last = max((at for at in decoded if at is not None), default=None)
    if last is None or not decoded <= set(pts):
        return None
    in_head = [at for at in pts if at <= last]
    return None if len(in_head) > 2 and are_fields(in_head, decoded) else tuple(pts)


def are_fields(pts: list[int], decoded: set[int | None]) -> bool:
    """Tell whether every second packet gives a frame; damage takes frames one after the other instead."""
    lost = max(
        (len(list(run)) for shown, run in groupby(pts, decoded.__contains__) if not shown),
        default=0,
    )
    return len(pts) >= 2 * len(decoded) - 1 and lost <= 2


def _decoded_pts(
    frames: list[_Decoded], packets: _Packets, step: int
) -> tuple[tuple[int, ...], bool]:
    """Return the pts of decoded frames, and whether they can only be counted."""
    pts = [shown.pts for shown in frames]
    known = [at for at in pts if at is not None]
    if len(known) == len(pts) and all(a < b for a, b in pairwise(known)):
        return tuple(known), None in packets.pts or len(set(packets.pts)) < len(packets.pts)
    return tuple(i * step for i in range(len(pts))), True


def _promise(pts: tuple[int, ...], num_lost: int, step: int) -> tuple[tuple[int, ...], int]:
    return pts + tuple(pts[-1] + step * (i + 1) for i in range(num_lost)), num_lost


def _frame_ticks(stream: VideoStream, tick: Fraction) -> int:
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    return max(1, round(1 / rate / tick))


def _is_cut_riff(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(8)
    return int.from_bytes(head[4:8], "little") + 8 > os.path.getsize(path)
