"""Encoders with settings that repeat: the same frames give the same bytes, on any machine."""

from __future__ import annotations

import functools
import hashlib
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.codec.context import Flags
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

from latentloom.errors import MediaError
from latentloom.media.child.channel import Array, Channel
from latentloom.media.child.picture import RANGES, Unpicture
from latentloom.media.segments import CodedPacket, Segment
from latentloom.schemas.media import HD_HEIGHT, ColorTags, EncodeSettings

ENCODERS = {"h264": "libx264", "h265": "libx265", "ffv1": "ffv1", "prores": "prores_ks"}
"""FFmpeg's encoder for each codec."""


class Encoder:
    """Encodes the frames of one segment."""

    def __init__(self, settings: EncodeSettings, pts: list[int]) -> None:
        self._settings = settings
        self._pts = pts
        self._num_frames = 0
        self._packets: list[CodedPacket] = []
        self._context = cast(
            VideoCodecContext, av.CodecContext.create(ENCODERS[settings.codec], "w")
        )
        configure(self._context, settings)
        open_encoder(self._context, settings)
        self._unpicture = Unpicture(pixel_format(settings), written_color(settings))

    def push(self, array: Array, channel: Channel) -> None:
        """Encode one more frame.

        Args:
            array: (H, W, 3) RGB.
            channel: Told of progress.
        """
        if self._num_frames >= len(self._pts):
            raise MediaError(f"more than {len(self._pts)} frames for a segment of as many pts")
        frame = self._unpicture.make(array)
        frame.pts = self._pts[self._num_frames]
        frame.time_base = Fraction(*self._settings.time_base)
        for packet in self._context.encode_lazy(frame):
            self._keep(packet)
        channel.progress(self._num_frames)
        self._num_frames += 1

    def finish(self, channel: Channel) -> bytes:
        """Return the segment's bytes.

        Args:
            channel: Told of progress.
        """
        if self._num_frames != len(self._pts):
            raise MediaError(f"{self._num_frames} frames came for {len(self._pts)} pts")
        for packet in self._context.encode_lazy(None):
            self._keep(packet)
            channel.progress(len(self._packets))
        if sorted(p.pts for p in self._packets) != self._pts or not self._packets[0].is_key:
            raise MediaError(
                f"the {self._settings.codec} encoder dropped or moved frames. Remove options that "
                "make it do so from output.extra."
            )
        settings = self._settings
        digest, delay = extradata_digest(self._context), max_delay(self._context, settings)
        rank = {pts: index for index, pts in enumerate(self._pts)}
        if max(index - rank[p.pts] for index, p in enumerate(self._packets)) > delay:
            raise MediaError(
                f"the {settings.codec} encoder reorders more than {delay} frames. Lower bframes in "
                "output.extra."
            )
        return Segment(
            settings.codec, settings.time_base, digest, delay, tuple(self._packets)
        ).to_bytes()

    def _keep(self, packet: Packet[Any]) -> None:
        if packet.pts is None:
            raise MediaError(f"the {self._settings.codec} encoder lost the time of a frame")
        self._packets.append(CodedPacket(packet.pts, packet.is_keyframe, bytes(packet)))


def configure(context: VideoCodecContext, settings: EncodeSettings) -> None:
    """Set up an encoder that is not open yet.

    Args:
        context: A context of the right codec.
        settings: What to encode, and how.
    """
    formats = sorted(shape.name for shape in context.codec.video_formats or ())
    if settings.pix_fmt is not None and settings.pix_fmt not in formats:
        raise MediaError(
            f"the {settings.codec} encoder takes no pix_fmt {settings.pix_fmt}, "
            f"only {', '.join(formats)}"
        )
    color = written_color(settings)
    context.width, context.height = settings.width, settings.height
    context.pix_fmt = pixel_format(settings)
    context.time_base = Fraction(*settings.time_base)
    context.framerate = Fraction(*settings.frame_rate)
    context.sample_aspect_ratio = Fraction(*settings.sample_aspect_ratio)
    context.thread_count = settings.threads
    context.bit_rate = 0
    context.flags |= Flags.global_header | Flags.closed_gop | Flags.bitexact
    context.color_range = RANGES[color.range]
    context.colorspace = color.matrix
    context.color_trc = color.transfer
    context.color_primaries = color.primaries
    context.options = encoder_options(settings)


def open_encoder(context: VideoCodecContext, settings: EncodeSettings) -> None:
    """Open an encoder.

    Args:
        context: A configured context.
        settings: What it was configured with, for the error.

    Raises:
        MediaError: The encoder refuses an option, or does not know it.
    """
    options = context.supported_options
    known = {option.name for option in (*options.generic, *options.private)}
    for name in encoder_options(settings):
        if name not in known:
            guess = "".join(f"; did you mean {g}?" for g in get_close_matches(name, known, 1))
            raise MediaError(f"the {settings.codec} encoder has no option {name}{guess}")
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as logs:
            context.open()
    except (av.FFmpegError, ValueError) as error:
        said = "; ".join(line.strip() for _, _, line in logs) or str(error)
        raise MediaError(
            f"the {settings.codec} encoder refuses {_shown(settings)}: {said}. "
            "Change these options."
        ) from error
    finally:
        av.logging.set_level(None)


def encoder_options(settings: EncodeSettings) -> dict[str, str]:
    """Return the encoder's options as ffmpeg names them."""
    named = {"preset": settings.preset, "tune": settings.tune, "profile": settings.profile}
    options = {name: value for name, value in named.items() if value is not None}
    if settings.crf is not None:
        options["crf"] = f"{settings.crf:g}"
    options |= DEFAULTS.get(settings.codec, {}) | settings.extra
    if settings.codec == "h264" and _has_avx512():
        given = settings.extra.get("x264-params")
        options["x264-params"] = f"asm=AVX2:{given}" if given else "asm=AVX2"
    if settings.codec == "h265":
        # Without "pools" x265 takes all cores of the machine, whatever number it has.
        fixed = f"log-level=none:pools={settings.threads}:frame-threads={settings.threads}"
        if min(settings.width, settings.height) < SMALL_FOR_X265:
            fixed += ":bframes=0"
        given = settings.extra.get("x265-params")
        options["x265-params"] = f"{given}:{fixed}" if given else fixed
    return options


@functools.cache
def _has_avx512() -> bool:
    """Tell whether x264 would take its AVX-512 routines.

    The one for macroblock trees reads past a row whose width is no multiple of 128 pixels, so that the same
    frames gave 5 different files in 150 tries at 64 px. Other levels give one, the same on any processor.
    """
    try:
        return "avx512" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False


SMALL_FOR_X265 = 128
"""Below this many pixels x265 chooses B-frames by chance: 3 files in 80 tries at 64 px, 1 without them."""
DEFAULTS = {"ffv1": {"level": "3", "slices": "4", "slicecrc": "1", "g": "1"}}


def pixel_format(settings: EncodeSettings) -> str:
    """Return the pixel format: as asked for, or one that fits codec, depth and odd sizes."""
    if settings.pix_fmt is not None:
        return settings.pix_fmt
    high = settings.high_bit_depth
    if settings.codec == "prores":
        return "yuv422p10le"
    if settings.codec == "ffv1":
        return "gbrp16le" if high else "bgr0"
    # 4:2:0 has no half columns: an odd size keeps its chroma whole.
    sampling = "444" if settings.width % 2 or settings.height % 2 else "420"
    return f"yuv{sampling}p" + ("10le" if high else "")


def written_color(settings: EncodeSettings) -> ColorTags:
    """Return the tags that go into the stream: what the conversion from RGB really uses."""
    if av.VideoFormat(pixel_format(settings)).is_rgb:
        return settings.color.model_copy(update={"matrix": 0, "range": "full"})
    color = settings.color.resolve(settings.height)
    if color.matrix == 0:
        color = color.model_copy(update={"matrix": 1 if settings.height >= HD_HEIGHT else 6})
    if color.matrix in (1, 6) and settings.color == ColorTags():
        update = {"transfer": color.matrix, "primaries": color.matrix}
        return color.model_copy(update=update)
    return color


def max_delay(context: VideoCodecContext, settings: EncodeSettings) -> int:
    """Return by how many frames decoding order may run ahead of presentation order."""
    # FFmpeg's wrapper of x265 leaves it at 0; with B-pyramids x265 reorders two frames at most.
    return 2 if settings.codec == "h265" else context.reorder_depth


def extradata_digest(context: VideoCodecContext) -> str:
    """Return the sha256 of the stream headers; segments that are joined must share them."""
    return hashlib.sha256(context.extradata or b"").hexdigest()


def as_frame(payload: bytearray, shape: list[int], dtype: str) -> Array:
    """Return raw bytes as a frame."""
    return np.frombuffer(payload, np.dtype(dtype)).reshape(shape)


def _shown(settings: EncodeSettings) -> str:
    options = {**encoder_options(settings), "pix_fmt": pixel_format(settings)}
    size = f"{settings.width}x{settings.height}"
    return ", ".join([size, *(f"{name}={value}" for name, value in sorted(options.items()))])
