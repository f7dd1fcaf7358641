"""Write rendered frames, with sound if there is any, to a video file."""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from latentloom.media.encode import Array, encode_segment
from latentloom.media.join import join_segments
from latentloom.schemas.media import AudioInfo, EncodeSettings, JoinReport, VideoCodec, VideoInfo

TICKS_A_FRAME = 512
"""Fine enough for any muxer; what FFmpeg itself takes for mp4."""


def write_video(
    path: str | Path,
    frames: Array | Iterable[Array],
    fps: Fraction | int,
    *,
    audio: Array | None = None,
    sample_rate: int = 48000,
    codec: VideoCodec = "h264",
    crf: float = 12,
    metadata: dict[str, str] | None = None,
) -> JoinReport:
    """Write a video of constant frame rate; the same frames give the same bytes.

    Args:
        path: File to write; its suffix chooses the container.
        frames: (F, H, W, 3) RGB, uint8 or uint16, or an iterable of such arrays.
        fps: Frames a second.
        audio: (samples,) or (samples, channels) in [-1, 1], or None.
        sample_rate: Samples a second.
        codec: Codec of the video.
        crf: Quality of h264 and h265; lower is better.
        metadata: Tags for the file.

    Returns:
        What the file holds.

    Raises:
        MediaError: There is no frame, or the file cannot be written.
    """
    chunks = [frames] if isinstance(frames, np.ndarray) else list(frames)
    num_frames = sum(len(chunk) for chunk in chunks)
    height, width = chunks[0].shape[1:3] if chunks else (1, 1)
    rate = Fraction(fps)
    tick = 1 / rate / TICKS_A_FRAME
    settings = EncodeSettings(
        codec=codec,
        width=width,
        height=height,
        time_base=(tick.numerator, tick.denominator),
        frame_rate=(rate.numerator, rate.denominator),
        high_bit_depth=bool(chunks) and chunks[0].dtype == np.uint16,
        crf=crf if codec in ("h264", "h265") else None,
    )
    pts = tuple(index * TICKS_A_FRAME for index in range(num_frames))
    segment = encode_segment(chunks, pts, settings)
    with tempfile.TemporaryDirectory(prefix="latentloom-") as folder:
        sound = None if audio is None else _write_wave(Path(folder), audio, sample_rate)
        return join_segments(
            [segment],
            path,
            source=sound,
            info=_describe(settings, pts, audio, sample_rate),
            first_frame=0,
            last_frame=num_frames,
            audio="aac",
            settings=settings,
            metadata=metadata or {},
        )


def _write_wave(folder: Path, audio: Array, sample_rate: int) -> Path:
    path = folder / "sound.wav"
    samples = np.clip(np.round(np.asarray(audio, np.float64) * 32767), -32768, 32767)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(_num_channels(audio))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def _describe(
    settings: EncodeSettings, pts: tuple[int, ...], audio: Array | None, sample_rate: int
) -> VideoInfo:
    """Describe the rendered clip as if it were a source, so that joining needs no second way."""
    track: Any = ()
    if audio is not None:
        channels = _num_channels(audio)
        track = (AudioInfo(index=0, codec="pcm_s16le", sample_rate=sample_rate, channels=channels),)
    return VideoInfo(
        format_name="rendered",
        stream=0,
        codec="rawvideo",
        width=settings.width,
        height=settings.height,
        pix_fmt="rgb24",
        time_base=settings.time_base,
        pts=pts,
        last_duration=TICKS_A_FRAME,
        audio=track,
    )


def _num_channels(audio: Array) -> int:
    return 1 if audio.ndim == 1 else int(audio.shape[1])
