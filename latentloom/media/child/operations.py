"""What the parent can ask for. Each operation is one short turn; long work is cut into many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from latentloom.media.child import containers, index, scenes
from latentloom.media.child.channel import Answer, Channel
from latentloom.media.child.encoder import Encoder, as_frame
from latentloom.media.child.joiner import Joiner
from latentloom.media.child.reader import Reader
from latentloom.schemas.media import EncodeSettings, VideoInfo

MAX_READERS = 8
"""Files held open; the one that was not read for longest is closed first."""

_readers: OrderedDict[str, Reader] = OrderedDict()
_encoders: dict[str, Encoder] = {}
_joiners: dict[str, Joiner] = {}


def probe(channel: Channel, payload: bytearray, **arguments: Any) -> Answer:
    """Index a file."""
    info = index.probe(channel, **arguments)
    return {}, info.model_dump_json().encode()


def open_reader(channel: Channel, payload: bytearray, *, key: str, **arguments: Any) -> Answer:
    """Make a reader; the payload is its VideoInfo."""
    close_reader(channel, payload, key=key)
    while len(_readers) >= MAX_READERS:
        _readers.popitem(last=False)[1].close()
    _readers[key] = Reader(info=VideoInfo.model_validate_json(payload), **arguments)
    return {}, b""


def read(channel: Channel, payload: bytearray, *, key: str, start: int, stop: int) -> Answer:
    """Send frames; ``known`` is false if the reader has to be opened first."""
    reader = _readers.get(key)
    if reader is None:
        return {"known": False}, b""
    _readers.move_to_end(key)
    reader.read(start, stop, channel)
    return {"known": True}, b""


def close_reader(channel: Channel, payload: bytearray, *, key: str) -> Answer:
    """Forget a reader."""
    reader = _readers.pop(key, None)
    if reader is not None:
        reader.close()
    return {}, b""


def open_encoder(
    channel: Channel, payload: bytearray, *, key: str, settings: dict[str, Any], pts: list[int]
) -> Answer:
    """Make an encoder for one segment."""
    _encoders[key] = Encoder(EncodeSettings.model_validate(settings), pts)
    return {}, b""


def encode(
    channel: Channel, payload: bytearray, *, key: str, shape: list[int], dtype: str
) -> Answer:
    """Encode the frame in the payload."""
    _encoders[key].push(as_frame(payload, shape, dtype), channel)
    return {}, b""


def close_encoder(channel: Channel, payload: bytearray, *, key: str, finish: bool) -> Answer:
    """Return the segment, or give it up."""
    encoder = _encoders.pop(key, None)
    return {}, encoder.finish(channel) if encoder is not None and finish else b""


def open_joiner(channel: Channel, payload: bytearray, *, key: str, **arguments: Any) -> Answer:
    """Start a joined file; the payload is the VideoInfo of its source."""
    settings = EncodeSettings.model_validate(arguments.pop("settings"))
    info = VideoInfo.model_validate_json(payload)
    _joiners[key] = Joiner(info=info, settings=settings, channel=channel, **arguments)
    return {}, b""


def join(channel: Channel, payload: bytearray, *, key: str) -> Answer:
    """Append the segment in the payload."""
    _joiners[key].push(bytes(payload), channel)
    return {}, b""


def close_joiner(channel: Channel, payload: bytearray, *, key: str, finish: bool) -> Answer:
    """Complete the file and report on it, or give it up."""
    joiner = _joiners.pop(key, None)
    if joiner is None or not finish:
        if joiner is not None:
            joiner.abort()
        return {}, b""
    return {}, joiner.finish(channel).model_dump_json().encode()


def check_container(
    channel: Channel, payload: bytearray, *, suffix: str, audio: str, codec: str
) -> Answer:
    """List what the container cannot hold; the payload is the VideoInfo of the source."""
    info = VideoInfo.model_validate_json(payload)
    return {"problems": containers.find_problems(info, suffix, audio, codec)}, b""


def find_cuts(
    channel: Channel, payload: bytearray, *, path: str, start: int, stop: int, threshold: float
) -> Answer:
    """List the frames of a range that begin a scene; the payload is the file's VideoInfo."""
    info = VideoInfo.model_validate_json(payload)
    return {"cuts": scenes.find_cuts(channel, path, info, start, stop, threshold)}, b""


OPERATIONS: dict[str, Callable[..., Answer]] = {
    operation.__name__: operation
    for operation in (
        probe,
        open_reader,
        read,
        close_reader,
        open_encoder,
        encode,
        close_encoder,
        open_joiner,
        join,
        close_joiner,
        check_container,
        find_cuts,
    )
}
