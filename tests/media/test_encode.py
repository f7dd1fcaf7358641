from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from latentloom.errors import MediaError
from latentloom.media.encode import encode_segment
from latentloom.media.segments import parse_segment
from latentloom.schemas.media import EncodeSettings

SIZE = {"width": 64, "height": 48, "time_base": (1, 1000)}
IRREGULAR = [0, 40, 41, 90, 200, 201, 202, 500, 507, 1000, 1040, 1080]


@pytest.fixture
def frames(draw_frame: Callable[..., Any]) -> Any:
    return np.stack([draw_frame(number) for number in range(len(IRREGULAR))])


@pytest.mark.parametrize("codec", ["h264", "h265", "ffv1", "prores"])
def test_segment_keeps_times_starts_on_a_key_frame_and_repeats(frames: Any, codec: Any) -> None:
    settings = EncodeSettings(codec=codec, **SIZE)
    data = encode_segment([frames[:5], frames[5:]], IRREGULAR, settings)
    segment = parse_segment(data)
    assert sorted(packet.pts for packet in segment.packets) == IRREGULAR
    assert segment.packets[0].is_key
    assert segment.packets[0].pts == 0
    assert data == encode_segment(iter([frames]), IRREGULAR, settings)


def test_frames_are_taken_one_chunk_at_a_time(frames: Any) -> None:
    taken = []

    def chunks() -> Any:
        for at in range(0, 12, 4):
            taken.append(at)
            yield frames[at : at + 4]

    encode_segment(chunks(), IRREGULAR, EncodeSettings(**SIZE))
    assert taken == [0, 4, 8]


def test_more_or_fewer_frames_than_times_are_an_error(frames: Any) -> None:
    settings = EncodeSettings(**SIZE)
    with pytest.raises(MediaError, match="11 frames came for 12 pts"):
        encode_segment([frames[:11]], IRREGULAR, settings)
    with pytest.raises(MediaError, match="more than 11 frames"):
        encode_segment([frames], IRREGULAR[:11], settings)
    with pytest.raises(MediaError, match="pts that rise"):
        encode_segment([frames], [0] * 12, settings)
    with pytest.raises(MediaError, match=r"frames of shape \(12, 40, 64, 3\)"):
        encode_segment([frames[:, :40]], IRREGULAR, settings)


def test_error_of_the_frames_is_not_hidden(frames: Any) -> None:
    def chunks() -> Any:
        yield frames[:4]
        raise KeyError("the store has lost a chunk")

    with pytest.raises(KeyError, match="lost a chunk"):
        encode_segment(chunks(), IRREGULAR, EncodeSettings(**SIZE))


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "quick"},
        {"profile": "none"},
        {"pix_fmt": "yuv999p"},
        {"extra": {"no-such-option": "1"}},
    ],
)
def test_option_that_the_encoder_refuses_is_named(frames: Any, options: Any) -> None:
    with pytest.raises(MediaError, match=r"h264.*(quick|none|yuv999p|no-such-option)"):
        encode_segment([frames], IRREGULAR, EncodeSettings(**SIZE, **options))


def test_option_that_breaks_joins_is_refused() -> None:
    with pytest.raises(ValidationError, match="crf cannot be set here"):
        EncodeSettings(**SIZE, extra={"crf": "20"})


def test_bytes_that_are_no_segment_are_refused() -> None:
    with pytest.raises(MediaError, match="5 bytes are not an encoded segment"):
        parse_segment(b"hello")
