from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from latentloom.errors import MediaError
from latentloom.media.decode import FrameReader
from latentloom.media.encode import encode_segment
from latentloom.media.join import check_container, join_segments
from latentloom.media.probe import probe
from latentloom.schemas.media import ColorTags, EncodeSettings, JoinReport, VideoInfo

Make = Callable[..., Path]
RATE = 48000
TEXTS = [(100, 300, "early"), (300, 900, "across"), (1000, 1200, "inside"), (1500, 1600, "late")]
CHAPTERS = [(0, 500, "one"), (500, 1100, "two"), (1100, 1600, "three")]


def edit(
    source: Path,
    destination: Path,
    start: int = 0,
    stop: int | None = None,
    *,
    segment: int = 10,
    audio: Any = "auto",
    metadata: dict[str, str] | None = None,
    high_bit_depth: bool = False,
    **options: Any,
) -> tuple[JoinReport, VideoInfo]:
    """Re-encode a cut of a clip in segments and join them; return the report and the new info."""
    info = probe(source)
    stop = info.num_frames if stop is None else stop
    reader = FrameReader(source, info, high_bit_depth=high_bit_depth)
    settings = EncodeSettings(
        width=reader.width,
        height=reader.height,
        time_base=info.time_base,
        color=info.color,
        high_bit_depth=high_bit_depth,
        sample_aspect_ratio=info.output_aspect(None, None),
        **options,
    )
    segments = (
        encode_segment([reader.read(at, end)], info.pts[at:end], settings)
        for at in range(start, stop, segment)
        for end in [min(at + segment, stop)]
    )
    report = join_segments(
        segments, destination, source=source, info=info, first_frame=start, last_frame=stop,
        audio=audio, settings=settings, metadata=metadata or {},
    )  # fmt: skip
    return report, probe(destination)


def clicks(num_frames: int = 40) -> Any:
    """Return sound that clicks whenever a frame whose number is a multiple of 8 starts."""
    sound = np.zeros(num_frames * RATE // 25, np.float32)
    for frame in range(0, num_frames, 8):
        at = frame * RATE // 25
        sound[at : at + 240] = 0.9 * np.sin(np.arange(240) * 0.4)
    return sound


def flash(number: int, width: int = 64, height: int = 48) -> Any:
    return np.full((height, width, 3), 255 if number % 8 == 0 else 0, np.uint8)


@pytest.fixture
def rich(make_clip: Make) -> Path:
    return make_clip(
        "rich.mp4", sound=clicks(), texts=TEXTS, chapters=CHAPTERS, picture=flash,
        options={"crf": "10"},
    )  # fmt: skip


def click_times(path: Path) -> list[float]:
    """Return when clicks are heard, on the clock of the file."""
    samples: list[Any] = []
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            first = float(frame.time or 0)
            wave = np.abs(frame.to_ndarray().reshape(frame.samples, -1, order="F")[:, 0])
            scale = 32768 if frame.format.name.startswith("s16") else 1
            samples += [first + at / frame.sample_rate for at in np.flatnonzero(wave > 0.3 * scale)]
    return [t for last, t in zip([-1.0, *samples], samples, strict=False) if t - last > 0.1]


def flash_times(path: Path) -> list[float]:
    info = probe(path)
    frames = FrameReader(path, info).read(0, info.num_frames)
    return [info.seconds(i) for i, frame in enumerate(frames) if frame.mean() > 128]


@pytest.mark.parametrize(
    ("name", "audio"),
    [("a.mp4", "auto"), ("b.mkv", "copy"), ("c.mov", "copy"), ("d.mp4", "aac"), ("e.mkv", "aac")],
)
def test_sound_stays_in_sync_after_a_cut(rich: Path, tmp_path: Path, name: str, audio: Any) -> None:
    report, _ = edit(rich, tmp_path / name, 13, 37, audio=audio)
    assert report.audio == ("aac",)
    assert report.reencoded_audio == ((1,) if audio == "aac" else ())
    seen, heard = flash_times(tmp_path / name), click_times(tmp_path / name)
    assert len(seen) == len(heard) == 3
    assert np.abs(np.array(seen) - heard).max() < (0.003 if audio == "aac" else 1024 / RATE)


def test_sound_that_starts_late_stays_late(make_clip: Make, tmp_path: Path) -> None:
    source = make_clip("late.mkv", sound=clicks(20), audio_start=Fraction(1, 2), picture=flash)
    for name, audio in [("copy.mp4", "copy"), ("aac.mp4", "aac"), ("copy.mkv", "copy")]:
        edit(source, tmp_path / name, 5, 35, audio=audio)
        found = click_times(tmp_path / name)
        assert found[0] == pytest.approx(0.3, abs=0.022)


def test_codec_that_the_container_cannot_hold_becomes_aac(make_clip: Make, tmp_path: Path) -> None:
    source = make_clip("old.asf", codec="mpeg4", sound=clicks(), audio_codec="wmav2")
    info = probe(source)
    assert check_container(info, ".mp4", "auto", "h264") == []
    (problem,) = check_container(info, ".mp4", "copy", "h264")
    assert "cannot be copied into mp4" in problem
    report, _ = edit(source, tmp_path / "out.mp4", 8, 40)
    assert report.audio == ("aac",)
    with pytest.raises(MediaError, match="cannot be copied"):
        edit(source, tmp_path / "copied.mp4", audio="copy")
    assert not (tmp_path / "copied.mp4").exists()


def test_container_is_checked() -> None:
    info = VideoInfo(
        format_name="mp4", stream=0, codec="h264", width=8, height=8, pix_fmt="yuv420p",
        time_base=(1, 25), pts=(0,), last_duration=1,
    )  # fmt: skip
    assert check_container(info, ".mp4", "auto", "h265") == []
    assert "not written to .avi" in check_container(info, ".avi", "auto", "h264")[0]
    assert "prores cannot be written to .mp4" in check_container(info, ".mp4", "auto", "prores")[0]


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv"])
def test_subtitles_and_chapters_are_cut_and_kept(rich: Path, tmp_path: Path, name: str) -> None:
    report, info = edit(rich, tmp_path / name, 10, 35)  # 0.4 s to 1.4 s
    assert report.num_chapters == 3
    assert [chapter.title for chapter in info.chapters] == ["one", "two", "three"]
    assert [c.start_seconds for c in info.chapters] == pytest.approx([0.0, 0.1, 0.7])
    assert [c.end_seconds for c in info.chapters] == pytest.approx([0.1, 0.7, 1.0])
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.subtitles[0]
        shown = [
            (float(p.pts * p.time_base), float((p.duration or 0) * p.time_base), bytes(p))
            for p in container.demux(stream)
            if p.pts is not None and p.size > 2
        ]
    assert [words[-6:] for _, _, words in shown] == [b"across", b"inside"]
    assert [begin for begin, _, _ in shown] == pytest.approx([0.0, 0.6])
    assert [length for _, length, _ in shown] == pytest.approx([0.5, 0.2])


def test_all_streams_of_a_source_without_a_cut_are_kept(rich: Path, tmp_path: Path) -> None:
    report, info = edit(rich, tmp_path / "out.mp4", metadata={"latentloom": '{"seed": 7}'})
    assert report.num_frames == info.num_frames == 40
    assert len(info.audio) == len(info.subtitles) == 1
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.metadata["latentloom"] == '{"seed": 7}'
        assert "creation_time" not in container.metadata


def test_source_without_sound_and_no_sound_wanted(
    make_clip: Make, rich: Path, tmp_path: Path
) -> None:
    assert edit(make_clip("plain.mp4"), tmp_path / "a.mp4")[0].audio == ()
    assert edit(rich, tmp_path / "b.mp4", audio="none")[0].audio == ()


@pytest.mark.parametrize("codec", ["h264", "h265"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_survives_segments(
    make_clip: Make, tmp_path: Path, read_number: Any, codec: str, suffix: str
) -> None:
    pts = [0, 40, 41, 90, 200, 201, 202, 500, 507, 1000, 1040, 1080, 1111, 1300, 1500, 1501]
    source = make_clip("vfr.mkv", len(pts), pts=pts, time_base=Fraction(1, 1000))
    _, info = edit(source, tmp_path / f"out{suffix}", 2, 15, segment=4, codec=codec)
    assert [info.seconds(i) for i in range(13)] == pytest.approx(
        [(p - 41) / 1000 for p in pts[2:15]]
    )
    assert info.pts[0] == 0
    frames = FrameReader(tmp_path / f"out{suffix}", info).read(0, 13)
    assert [read_number(frame) for frame in frames] == list(range(2, 15))


def test_joined_file_repeats_whatever_its_path(rich: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    edit(rich, tmp_path / "one.mp4", 3, 30)
    edit(rich, tmp_path / "b" / "two.mp4", 3, 30)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "b" / "two.mp4").read_bytes()


def test_missing_or_foreign_segment_is_refused(make_clip: Make, tmp_path: Path) -> None:
    source, target = make_clip("plain.mp4"), tmp_path / "out.mp4"
    info = probe(source)
    frames = FrameReader(source, info).read(0, 40)
    settings = EncodeSettings(width=64, height=48, time_base=info.time_base)
    other = settings.model_copy(update={"preset": "ultrafast"})

    def join(*segments: bytes) -> None:
        join_segments(
            segments, target, source=None, info=info, first_frame=0, last_frame=40, audio="none",
            settings=settings, metadata={},
        )  # fmt: skip

    first = encode_segment([frames[:20]], info.pts[:20], settings)
    second = encode_segment([frames[20:]], info.pts[20:], settings)
    with pytest.raises(MediaError, match="20 frames are encoded of 40"):
        join(first)
    with pytest.raises(MediaError, match="does not hold frames 0:20"):
        join(second, first)
    with pytest.raises(MediaError, match="other settings"):
        join(first, encode_segment([frames[20:]], info.pts[20:], other))
    assert not target.exists()
    join(first, second)
    assert target.exists()


def test_picture_is_as_good_at_joins_as_elsewhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 255, (64, 96, 3)).repeat(2, 0).repeat(2, 1).astype(np.uint8)
    frames = np.stack([np.roll(texture, (number, 2 * number), (0, 1)) for number in range(60)])
    settings = EncodeSettings(width=192, height=128, time_base=(1, 25), crf=20)
    pts = tuple(range(60))
    info = VideoInfo(
        format_name="", stream=0, codec="", width=192, height=128, pix_fmt="rgb24",
        time_base=(1, 25), pts=pts, last_duration=1,
    )  # fmt: skip
    segments = [encode_segment([frames[a : a + 30]], pts[a : a + 30], settings) for a in (0, 30)]
    path = tmp_path / "joined.mp4"
    join_segments(
        segments, path, source=None, info=info, first_frame=0, last_frame=60, audio="none",
        settings=settings, metadata={},
    )  # fmt: skip
    shown = FrameReader(path, probe(path)).read(0, 60)
    errors = ((shown.astype(float) - frames) ** 2).mean(axis=(1, 2, 3))
    psnr = 10 * np.log10(255**2 / errors)
    assert psnr[28:32].min() > psnr.min() - 0.01
    assert np.abs(np.diff(psnr))[29] < 2 * max(1, np.abs(np.diff(psnr))[:28].max())


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("color_range", ["limited", "full"])
@pytest.mark.parametrize(("codec", "high"), [("h264", False), ("h265", True)])
def test_colours_survive_with_their_tags(
    tmp_path: Path, matrix: int, color_range: Any, codec: Any, high: bool
) -> None:
    tags = ColorTags(range=color_range, matrix=matrix, transfer=matrix, primaries=matrix)
    colours = np.array([[255, 0, 0], [0, 255, 0], [20, 40, 200], [255, 255, 255], [0, 0, 0]])
    frame = colours.repeat(16, 0)[None].repeat(48, 0).astype(np.uint16 if high else np.uint8)
    frame = frame * 257 if high else frame
    settings = EncodeSettings(
        codec=codec, width=80, height=48, time_base=(1, 25), crf=2, color=tags,
        high_bit_depth=high, pix_fmt="yuv444p10le" if high else "yuv444p", preset="ultrafast",
    )  # fmt: skip
    info = VideoInfo(
        format_name="", stream=0, codec="", width=80, height=48, pix_fmt="rgb24",
        time_base=(1, 25), pts=(0,), last_duration=1,
    )  # fmt: skip
    path = tmp_path / "out.mp4"
    join_segments(
        [encode_segment([frame[None]], [0], settings)], path, source=None, info=info, first_frame=0,
        last_frame=1, audio="none", settings=settings, metadata={},
    )  # fmt: skip
    found = probe(path)
    assert found.color == tags
    assert found.bit_depth == (10 if high else 8)
    shown = FrameReader(path, found, high_bit_depth=high).read(0, 1)[0, :, 8::16]
    wanted = frame[:, 8::16].astype(int)
    assert np.abs(shown.astype(int) - wanted).max() <= (3 * 257 if high else 5)


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264", ".mp4"), ("h265", ".mp4"), ("ffv1", ".mkv"), ("prores", ".mov")]
)
def test_odd_sizes_and_ten_bits(
    make_clip: Make, tmp_path: Path, read_number: Any, codec: str, suffix: str
) -> None:
    source = make_clip("oddten.mkv", 6, size=(63, 47), pix_fmt="yuv444p10le")
    path = tmp_path / f"out{suffix}"
    _, info = edit(source, path, codec=codec, high_bit_depth=True)
    assert (info.width, info.height) == (63, 47)
    assert info.bit_depth == (16 if codec == "ffv1" else 10)
    new = FrameReader(path, info, high_bit_depth=True).read(0, 6)
    old = FrameReader(source, probe(source), high_bit_depth=True).read(0, 6)
    assert [read_number(frame) for frame in new] == list(range(6))
    if codec == "ffv1":
        assert np.array_equal(new, old)


def test_rotation_is_in_the_pixels_and_no_longer_in_the_file(
    make_clip: Make, tmp_path: Path
) -> None:
    source = make_clip("turned.mp4", 6, rotation=90)
    _, info = edit(source, tmp_path / "out.mp4")
    assert (info.rotation, info.width, info.height) == (0, 48, 64)


def test_wide_pixels_stay_wide(make_clip: Make, tmp_path: Path) -> None:
    source = make_clip("wide2.mp4", 6, stream={"sample_aspect_ratio": Fraction(3, 2)})
    assert edit(source, tmp_path / "out.mp4")[1].sample_aspect_ratio == (3, 2)
