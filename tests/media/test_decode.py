from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import MediaError
from latentloom.media.decode import FrameReader, decoder_version
from latentloom.media.probe import probe

Make = Callable[..., Path]
NUM_FRAMES = 40
CLIPS: dict[str, dict[str, Any]] = {
    "keys.mp4": {"options": {"g": "8", "bf": "3"}},
    "open.mp4": {"options": {"g": "8", "bf": "3", "x264-params": "open-gop=1"}},
    "plain.ts": {"options": {"g": "8"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "8", "bf": "2"}},
}


@pytest.mark.parametrize("name", CLIPS)
def test_any_range_is_frame_exact(make_clip: Make, read_number: Any, name: str) -> None:
    path = make_clip(name, **CLIPS[name])
    reader = FrameReader(path, probe(path))

    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, NUM_FRAMES), st.integers(0, 9))
    def check(start: int, count: int) -> None:
        stop = min(start + count, NUM_FRAMES)
        frames = reader.read(start, stop)
        assert [read_number(frame) for frame in frames] == list(range(start, stop))

    check()


@pytest.mark.parametrize("deinterlace", [False, True])
def test_chunk_size_changes_no_byte(make_clip: Make, deinterlace: bool) -> None:
    path = make_clip("keys.mp4", **CLIPS["keys.mp4"])
    info = probe(path)
    whole = FrameReader(path, info, deinterlace=deinterlace).read(0, NUM_FRAMES)

    @settings(max_examples=8, deadline=None)
    @given(st.sampled_from([1, 4, 7, 16]), st.integers(0, 20))
    def check(size: int, start: int) -> None:
        reader = FrameReader(path, info, deinterlace=deinterlace)
        for at in range(start, NUM_FRAMES, size):
            stop = min(at + size, NUM_FRAMES)
            assert np.array_equal(reader.read(at, stop), whole[at:stop])
        reader.close()

    check()


def test_ranges_outside_the_video_are_refused(make_clip: Make) -> None:
    path = make_clip("keys.mp4", **CLIPS["keys.mp4"])
    reader = FrameReader(path, probe(path))
    with pytest.raises(ValueError, match="frames 39:41 of a video of 40 frames"):
        reader.read(39, 41)
    assert reader.read(5, 5).shape == (0, 48, 64, 3)


def test_more_readers_than_the_child_keeps_open(make_clip: Make, read_number: Any) -> None:
    path = make_clip("keys.mp4", **CLIPS["keys.mp4"])
    info = probe(path)
    readers = [FrameReader(path, info) for _ in range(10)]
    for at in (3, 20):
        assert [read_number(r.read(at, at + 1)[0]) for r in readers] == [at] * 10


def corner_picture(number: int, width: int = 64, height: int = 48) -> Any:
    """Return grey with a red top left and a blue bottom right corner."""
    frame = np.full((height, width, 3), 128, np.uint8)
    frame[: height // 3, : width // 4] = (255, 0, 0)
    frame[-(height // 3) :, -(width // 4) :] = (0, 0, 255)
    return frame


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(make_clip: Make, rotation: int) -> None:
    options: dict[str, Any] = {"options": {"crf": "1"}, "picture": corner_picture}
    path = make_clip(f"turned{rotation}.mp4", 3, rotation=rotation, **options)
    straight = make_clip("straight.mp4", 3, **options)
    frames = FrameReader(path, probe(path)).read(0, 3)
    plain = FrameReader(straight, probe(straight)).read(0, 3)
    assert probe(path).rotation == rotation
    assert np.array_equal(frames, np.rot90(plain, rotation // 90, axes=(1, 2)))


def test_fit_covers_contains_or_stretches(make_clip: Make) -> None:
    path = make_clip("straight.mp4", 3, options={"crf": "1"}, picture=corner_picture)
    info = probe(path)

    def corners(fit: Any) -> list[tuple[int, int]]:
        frame = FrameReader(path, info, width=48, height=48, fit=fit).read(0, 1)[0].astype(int)
        red = np.argwhere((frame[..., 0] > 200) & (frame[..., 2] < 80))
        return [tuple(red.min(axis=0)), tuple(red.max(axis=0) + 1)]

    # 64x48 covers 48x48 at its own size less 8 columns each side; contains it as 48x36.
    assert corners("cover")[1] == pytest.approx((16, 8), abs=1)
    assert corners("contain")[0] == (6, 0)
    assert corners("contain")[1] == pytest.approx((18, 12), abs=1)
    assert corners("stretch")[1] == pytest.approx((16, 12), abs=1)


def test_wide_pixels_are_shown_wide(make_clip: Make) -> None:
    path = make_clip(
        "wide.mp4", 3, options={"crf": "1"}, picture=corner_picture,
        stream={"sample_aspect_ratio": Fraction(3, 2)},
    )  # fmt: skip
    info = probe(path)
    assert info.output_size(None, 48) == (96, 48)
    assert info.output_aspect(None, None) == (3, 2)
    frame = FrameReader(path, info, height=48).read(0, 1)[0].astype(int)
    red = np.argwhere((frame[..., 0] > 200) & (frame[..., 2] < 80))
    assert red.max(axis=0)[1] + 1 == pytest.approx(24, abs=1)


def test_odd_sizes_are_kept(make_clip: Make) -> None:
    path = make_clip("odd.mkv", 3, size=(63, 47), pix_fmt="yuv444p")
    frames = FrameReader(path, probe(path)).read(0, 3)
    assert frames.shape == (3, 47, 63, 3)
    assert FrameReader(path, probe(path), width=33, height=17).read(0, 1).shape == (1, 17, 33, 3)


@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv444p10le"])
def test_matrix_and_range_are_honoured(
    tmp_path: Path, matrix: int, color_range: int, pix_fmt: str
) -> None:
    path, ten = tmp_path / "color.mkv", "10" in pix_fmt
    planes = [100, 90, 160]
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, color_range
        frame = av.VideoFrame(16, 16, pix_fmt)
        for plane, value in zip(frame.planes, planes, strict=True):
            kind = np.uint16 if ten else np.uint8
            size = plane.buffer_size // np.dtype(kind).itemsize
            plane.update(np.full(size, value * 4 if ten else value, kind).tobytes())
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    found = FrameReader(path, probe(path), high_bit_depth=ten).read(0, 1)[0, 8, 8]
    wanted = to_rgb(planes, matrix, color_range) * (257 if ten else 1)
    assert np.abs(found.astype(int) - wanted).max() <= (200 if ten else 1)


def to_rgb(yuv: list[int], matrix: int, color_range: int) -> Any:
    """Convert by the textbook, in [0, 255]."""
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    luma, chroma = ((yuv[0] - 16) / 219, 224) if color_range == 1 else (yuv[0] / 255, 255)
    u, v = (yuv[1] - 128) / chroma, (yuv[2] - 128) / chroma
    r, b = luma + 2 * (1 - red) * v, luma + 2 * (1 - blue) * u
    return np.clip(np.array([r, (luma - red * r - blue * b) / (1 - red - blue), b]) * 255, 0, 255)


def test_ten_bits_fill_sixteen(make_clip: Make) -> None:
    def ramp(number: int, width: int, height: int) -> Any:
        return np.full((height, width, 3), 255 if number else 0, np.uint8)

    path = make_clip("ten.mp4", 2, pix_fmt="yuv420p10le", picture=ramp)
    frames = FrameReader(path, probe(path), high_bit_depth=True).read(0, 2)
    assert frames.dtype == np.uint16
    assert frames[0].max() < 400
    assert frames[1].min() > 65535 - 400


def comb_picture(number: int, width: int = 64, height: int = 48) -> Any:
    """Return two fields with a bar at two places."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[0::2, 4 * number : 4 * number + 8] = 255
    frame[1::2, 4 * number + 2 : 4 * number + 10] = 255
    return frame


def test_deinterlacing_removes_the_comb_and_no_frame(make_clip: Make) -> None:
    options = {"crf": "1", "x264-params": "tff=1", "flags": "+ildct+ilme"}
    path = make_clip("comb.mkv", 12, options=options, picture=comb_picture)
    info = probe(path)
    before = FrameReader(path, info).read(0, 12).astype(int)
    after = FrameReader(path, info, deinterlace=True).read(0, 12).astype(int)
    assert len(after) == 12

    def comb(frames: Any) -> float:
        return float(np.abs(2 * frames[:, 1:-1] - frames[:, :-2] - frames[:, 2:]).mean())

    assert comb(after) < 0.3 * comb(before)
    columns = after[:, :, :, 0].mean(axis=1) @ np.arange(64)
    assert (np.diff(columns) > 0).all()


def broken_middle(make_clip: Make, folder: Path) -> Path:
    """Return a clip whose frames 16 to 23 (one group of pictures) are gone."""
    data = bytearray(make_clip("keys.mp4", **CLIPS["keys.mp4"]).read_bytes())
    with av.open(str(make_clip("keys.mp4"))) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]
    for pos, size, pts in packets:
        if pos is not None and pts is not None and 16 * 512 <= pts < 24 * 512:
            data[pos : pos + size] = bytes(size)
    path = folder / "broken.mp4"
    path.write_bytes(data)
    return path


def test_damaged_frame_is_an_error_that_names_it(make_clip: Make, tmp_path: Path) -> None:
    path = broken_middle(make_clip, tmp_path)
    reader = FrameReader(path, probe(path))
    assert len(reader.read(0, 16)) == 16
    with pytest.raises(MediaError, match="frame 16 of 40 cannot be decoded"):
        reader.read(10, 30)
    assert len(reader.read(24, 40)) == 16


@pytest.mark.parametrize("size", [1, 4, 7, 40])
def test_damaged_frames_are_held(
    make_clip: Make, tmp_path: Path, read_number: Any, size: int
) -> None:
    path = broken_middle(make_clip, tmp_path)
    reader = FrameReader(path, probe(path), on_damage="hold")
    numbers = [
        read_number(frame)
        for at in range(0, 40, size)
        for frame in reader.read(at, min(at + size, 40))
    ]
    assert numbers == [*range(16), *[15] * 8, *range(24, 40)]


def test_frames_that_a_cut_off_file_promises_are_held(
    make_clip: Make, index_first: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = tmp_path / "cut.mp4"
    data = index_first(make_clip("keys.mp4", **CLIPS["keys.mp4"])).read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    info = probe(path, on_damage="hold")
    assert info.num_frames == 40
    assert info.missing_frames > 0
    last = FrameReader(path, info, on_damage="hold").read(38, 40)
    assert np.array_equal(last[0], last[1])


def test_version_names_what_bytes_depend_on() -> None:
    assert decoder_version() == f"av {av.__version__}"
