"""Clips made on the spot. Every frame shows its number in black and white bars, so that any codec
keeps it and a test can say which frame it was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet

from latentloom.media import process

NUM_BITS = 8
MILLISECOND = Fraction(1, 1000)


def draw(number: int, width: int = 64, height: int = 48) -> Any:
    """Return an RGB frame that shows a number, over colours that move."""
    rows, columns = np.mgrid[0:height, 0:width]
    frame = np.stack(
        [(columns * 2 + number * 3) % 256, (rows * 3) % 256, np.full_like(rows, 90)], axis=-1
    )
    for bit in range(NUM_BITS):
        left, right = bit * width // NUM_BITS, (bit + 1) * width // NUM_BITS
        frame[: height // 2, left:right] = 255 if number >> bit & 1 else 0
    return frame.astype(np.uint8)


@pytest.fixture(scope="session")
def draw_frame() -> Callable[..., Any]:
    return draw


@pytest.fixture(scope="session")
def read_number() -> Callable[[Any], int]:
    def read(frame: Any) -> int:
        height, width = frame.shape[:2]
        white = np.iinfo(frame.dtype).max / 2
        columns = [round((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
        return sum((int(frame[height // 4, c].mean() > white)) << b for b, c in enumerate(columns))

    return read


def write_clip(
    path: Path,
    num_frames: int = 40,
    *,
    size: tuple[int, int] = (64, 48),
    pts: list[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    stream: dict[str, Any] | None = None,
    rotation: int = 0,
    sound: Any = None,
    audio_codec: str = "aac",
    audio_start: Fraction = Fraction(0),
    texts: list[tuple[int, int, str]] | None = None,
    chapters: list[tuple[int, int, str]] | None = None,
    first_videos: int = 0,
    picture: Callable[..., Any] = draw,
) -> Path:
    """Write a clip; ``pts`` are ticks of ``time_base``, texts and chapters (start, end, words) in ms."""
    with av.open(str(path), "w") as output:
        videos: list[Any] = [output.add_stream(codec, rate=25) for _ in range(first_videos + 1)]
        for place, video in enumerate(videos):
            scale = 1 if place == first_videos else 2
            video.width, video.height, video.pix_fmt = size[0] * scale, size[1] * scale, pix_fmt
            video.codec_context.time_base = video.time_base = time_base
            video.codec_context.options = {"threads": "1", **(options or {})}
            for name, value in (stream or {}).items():
                setattr(video.codec_context, name, value)
            if rotation:
                video.set_display_rotation(rotation)
        audio: Any = None
        if sound is not None:
            audio = output.add_stream(audio_codec, rate=48000, layout="mono", bit_rate=96000)
        _write_texts(output, path.suffix, texts or [], chapters or [])
        for video in videos:
            for number in range(num_frames):
                image = av.VideoFrame.from_ndarray(picture(number, video.width, video.height))
                frame = image.reformat(format=pix_fmt)
                frame.pts, frame.time_base = (pts or range(num_frames))[number], time_base
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
        if audio is not None:
            _write_sound(output, audio, sound, audio_start)
    return path


def _write_texts(
    output: Any,
    suffix: str,
    texts: list[tuple[int, int, str]],
    chapters: list[tuple[int, int, str]],
) -> None:
    codec = "subrip" if suffix == ".mkv" else "mov_text"
    stream = output.add_mux_stream(codec, time_base=MILLISECOND) if texts else None
    output.set_chapters(
        [
            {"id": n, "start": start, "end": end, "time_base": MILLISECOND,
             "metadata": {"title": title}}
            for n, (start, end, title) in enumerate(chapters, 1)
        ]
    )  # fmt: skip
    for start, end, words in texts:
        text = words.encode()
        if codec == "mov_text":
            text = len(text).to_bytes(2, "big") + text
        packet: Packet[Any] = Packet(text)
        packet.pts = packet.dts = start
        packet.duration, packet.time_base = end - start, MILLISECOND
        packet.is_keyframe, packet.stream = True, stream
        output.mux(packet)


def _write_sound(output: Any, audio: Any, sound: Any, start: Fraction) -> None:
    layout = "fltp" if audio.codec_context.name in ("aac", "wmav2") else "s16"
    samples = sound if layout == "fltp" else (sound * 32767).astype(np.int16)
    offset = round(start * 48000)
    for at in range(0, len(samples), 960):
        part = samples[None, at : at + 960]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), layout, "mono")
        frame.sample_rate, frame.pts = 48000, at + offset
        frame.time_base = Fraction(1, 48000)
        output.mux(audio.encode(frame))
    output.mux(audio.encode(None))


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a clip by name and options; each one only once a session."""
    folder = tmp_path_factory.mktemp("clips")
    made: dict[str, Path] = {}

    def make(name: str, *arguments: Any, **options: Any) -> Path:
        if name not in made:
            made[name] = write_clip(folder / name, *arguments, **options)
        return made[name]

    return make


@pytest.fixture(scope="session")
def index_first(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Rewrite an mp4 with its index before its frames, so that its end can be cut off."""

    def rewrite(path: Path) -> Path:
        made = tmp_path_factory.mktemp("fast") / path.name
        with (
            av.open(str(path)) as source,
            av.open(str(made), "w", container_options={"movflags": "faststart"}) as output,
        ):
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    output.mux(packet)
        return made

    return rewrite


@pytest.fixture
def fresh_child() -> Iterator[None]:
    """Leave no child behind that was started with the environment of a test."""
    yield
    process.stop()
