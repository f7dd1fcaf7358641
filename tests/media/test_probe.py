from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from latentloom.errors import MediaError
from latentloom.media import process
from latentloom.media.child.index import are_fields
from latentloom.media.decode import FrameReader
from latentloom.media.probe import probe

Make = Callable[..., Path]
IRREGULAR = [0, 40, 41, 90, 200, 201, 202, 500, 507, 1000, 1040, 1080, 1111, 1300, 1500, 1501]


def decoded_pts(path: Path, stream: int = 0) -> list[int | None]:
    with av.open(str(path)) as container:
        return [frame.pts for frame in container.decode(container.streams[stream])]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain.mp4", {}),
        ("keys.mp4", {"options": {"g": "8", "bf": "3"}}),
        ("open.mp4", {"options": {"g": "8", "bf": "3", "x264-params": "open-gop=1"}}),
        ("plain.mkv", {"options": {"g": "8"}}),
        ("plain.ts", {"options": {"g": "8"}, "time_base": Fraction(1, 25)}),
        ("mpeg4.avi", {"codec": "mpeg4", "options": {"g": "8", "bf": "2"}}),
        ("mpeg2.ts", {"codec": "mpeg2video", "options": {"g": "8", "bf": "2"}}),
        ("lossless.mkv", {"codec": "ffv1", "num_frames": 8}),
        ("motion.mov", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "num_frames": 8}),
    ],
)
def test_index_equals_what_decoding_gives(
    make_clip: Make, name: str, options: dict[str, Any]
) -> None:
    path = make_clip(name, **options)
    info = probe(path)
    assert list(info.pts) == decoded_pts(path)
    assert not info.counted
    assert info.keyframes[0] == 0


def test_stream_without_times_is_counted(make_clip: Make, read_number: Any) -> None:
    path = make_clip("raw.h264", options={"g": "8"})
    info = probe(path)
    assert info.counted
    assert info.num_frames == 40
    frames = FrameReader(path, info).read(13, 17)
    assert [read_number(frame) for frame in frames] == [13, 14, 15, 16]


def test_frames_before_the_first_key_frame_are_not_indexed(
    make_clip: Make, tmp_path: Path, read_number: Any
) -> None:
    whole = make_clip("plain.ts", options={"g": "8"})
    data = whole.read_bytes()
    with av.open(str(whole)) as container:
        places = [p.pos for p in container.demux(video=0) if p.pos is not None]
    tables, start = data[: 188 * 3], places[3] // 188 * 188
    cut = tmp_path / "cut.ts"
    cut.write_bytes(tables + data[start:])
    info = probe(cut)
    assert list(info.pts) == decoded_pts(cut)
    assert read_number(FrameReader(cut, info).read(0, 1)[0]) == 40 - info.num_frames


def test_variable_frame_rate_is_exact(make_clip: Make) -> None:
    path = make_clip(
        "vfr.mkv", len(IRREGULAR), pts=IRREGULAR, time_base=Fraction(1, 1000), options={"bf": "2"}
    )
    info = probe(path)
    assert list(info.pts) == IRREGULAR
    assert info.frame_range(0.04, 0.2) == (1, 4)
    assert info.seconds(5) == pytest.approx(0.201)


def test_edit_list_hides_frames(make_clip: Make, tmp_path: Path, read_number: Any) -> None:
    whole, cut = make_clip("keys.mp4"), tmp_path / "edited.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.pts -= 3 * 512
                packet.dts -= 3 * 512
                packet.stream = stream
                output.mux(packet)
    info = probe(cut)
    assert list(info.pts) == decoded_pts(cut)
    assert read_number(FrameReader(cut, info).read(0, 1)[0]) == 40 - info.num_frames


def test_first_video_stream_is_taken_unless_another_is_named(
    make_clip: Make, read_number: Any
) -> None:
    path = make_clip("two.mp4", 20, first_videos=1)
    first, second = probe(path), probe(path, video_stream=1)
    assert (first.stream, first.width) == (0, 128)
    assert (second.stream, second.width) == (1, 64)
    assert read_number(FrameReader(path, second).read(11, 12)[0]) == 11
    with pytest.raises(MediaError, match="no video stream 7; video streams: 0, 1"):
        probe(path, video_stream=7)


def test_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as output:
        cover: Any = output.add_stream("mjpeg", rate=1)
        video: Any = output.add_stream("libx264", rate=25)
        cover.width, cover.height, cover.pix_fmt = 128, 128, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video.width, video.height = 64, 48
        output.start_encoding()
        for stream, count in ((cover, 1), (video, 5)):
            image = np.zeros((stream.height, stream.width, 3), np.uint8)
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(image).reformat(format=stream.pix_fmt)
                frame.pts = number
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.num_frames) == (64, 5)


def test_facts_of_the_stream(make_clip: Make) -> None:
    sound = np.zeros(48000, np.float32)
    path = make_clip(
        "facts.mp4",
        30,
        pix_fmt="yuv420p10le",
        rotation=90,
        sound=sound,
        texts=[(100, 500, "words")],
        chapters=[(0, 600, "one"), (600, 1200, "two")],
        stream={
            "color_range": 1, "colorspace": 9, "color_trc": 16, "color_primaries": 9,
            "sample_aspect_ratio": Fraction(4, 3),
        },
    )  # fmt: skip
    info = probe(path)
    assert (info.bit_depth, info.rotation, info.sample_aspect_ratio) == (10, 90, (4, 3))
    assert (info.display_width, info.display_height) == (48, 64)
    assert info.color.model_dump() == {
        "range": "limited", "matrix": 9, "transfer": 16, "primaries": 9,
    }  # fmt: skip
    assert [(a.codec, a.sample_rate, a.channels) for a in info.audio] == [("aac", 48000, 1)]
    assert [(s.codec, s.text) for s in info.subtitles] == [("mov_text", True)]
    assert [c.title for c in info.chapters] == ["one", "two"]
    assert info.end_pts(30) - info.pts[29] == info.last_duration


def test_frames_lost_in_a_row_are_damage_and_not_fields() -> None:
    assert are_fields(list(range(16)), set(range(0, 16, 2)))
    assert not are_fields(list(range(10)), {7, 8, 9})
    assert not are_fields(list(range(16)), set(range(8, 16)))


def test_interlaced_video_is_named(make_clip: Make) -> None:
    path = make_clip("fields.mkv", 12, options={"x264-params": "tff=1", "flags": "+ildct+ilme"})
    assert probe(path).interlaced
    assert not probe(make_clip("plain.mp4")).interlaced


def test_what_is_no_video_is_refused(make_clip: Make, tmp_path: Path) -> None:
    text, empty = tmp_path / "a.mp4", tmp_path / "b.mp4"
    text.write_text("no video at all\n" * 100)
    empty.touch()
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{make_clip('plain.ts')}\n#EXT-X-ENDLIST\n")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    refused: list[tuple[Path | str, str]] = [
        (text, "cannot be opened"),
        (empty, "is empty"),
        (playlist, "cannot be opened"),
        (pipe, "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none.mp4", "No such file"),
        ("http://127.0.0.1/a.mp4", "No such file"),
    ]
    for path, why in refused:
        with pytest.raises(MediaError, match=why):
            probe(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate = 48000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no video stream"):
        probe(path)


def test_picture_over_the_limit_is_refused(make_clip: Make) -> None:
    with pytest.raises(MediaError, match="64x48 pixels are more than the 1000 allowed"):
        probe(make_clip("plain.mp4"), max_pixels=1000)


@pytest.mark.parametrize("name", ["plain.mkv", "plain.mp4", "mpeg4.avi"])
def test_cut_off_file_is_refused(
    make_clip: Make, index_first: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    whole = make_clip(name, codec=codec, options={"g": "8"})
    if name.endswith("mp4"):
        whole = index_first(whole)
    assert probe(whole).num_frames == 40
    cut = tmp_path / name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(MediaError, match="cut off after frame"):
        probe(cut)


def test_flipped_bits_give_an_error_or_frames_but_never_a_crash(
    make_clip: Make, tmp_path: Path
) -> None:
    data = make_clip("keys.mp4").read_bytes()
    path = tmp_path / "flipped.mp4"
    rng = np.random.default_rng(5)
    probe(make_clip("keys.mp4"))
    before = process.generation()
    for _ in range(40):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 12):
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with suppress(MediaError):
            info = probe(path)
            frames = FrameReader(path, info, width=32, height=32).read(0, info.num_frames)
            assert len(frames) == info.num_frames > 0
    assert process.generation() == before
