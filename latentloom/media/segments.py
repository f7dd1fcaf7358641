"""The bytes of one encoded segment: its packets in decoding order, and what a join must know.

No container: every one of them rounds, shifts or guesses times; here pts are exact.
Layout: magic, length of the JSON head (8 bytes, little endian), head, packets one after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from latentloom.errors import MediaError

MAGIC = b"latentloom segment 1\n"


@dataclass(frozen=True)
class CodedPacket:
    """One coded frame."""

    pts: int
    is_key: bool
    data: bytes


@dataclass(frozen=True)
class Segment:
    """Coded frames of one encoder run; the first is a key frame."""

    codec: str
    time_base: tuple[int, int]
    extradata_sha256: str
    delay: int
    """Frames by which decoding order may run ahead of presentation order."""
    packets: tuple[CodedPacket, ...]

    def to_bytes(self) -> bytes:
        """Return the segment as bytes, the same for the same packets."""
        head = {
            "codec": self.codec,
            "time_base": self.time_base,
            "extradata_sha256": self.extradata_sha256,
            "delay": self.delay,
            "packets": [[p.pts, int(p.is_key), len(p.data)] for p in self.packets],
        }
        text = json.dumps(head, separators=(",", ":")).encode()
        return b"".join(
            [MAGIC, len(text).to_bytes(8, "little"), text, *(p.data for p in self.packets)]
        )


def parse_segment(data: bytes) -> Segment:
    """Read a segment back.

    Args:
        data: What ``to_bytes`` made.

    Raises:
        MediaError: These bytes are no segment.
    """
    start = len(MAGIC) + 8
    try:
        if not data.startswith(MAGIC):
            raise ValueError("no magic")  # noqa: TRY301  # one handler words every damage
        stop = start + int.from_bytes(data[len(MAGIC) : start], "little")
        head = json.loads(data[start:stop])
        packets = tuple(_cut(head["packets"], data, stop))
        return Segment(
            head["codec"],
            (head["time_base"][0], head["time_base"][1]),
            head["extradata_sha256"],
            head["delay"],
            packets,
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise MediaError(
            f"{len(data)} bytes are not an encoded segment. Encode it again."
        ) from error


def _cut(rows: list[list[int]], data: bytes, offset: int) -> Iterator[CodedPacket]:
    for pts, is_key, size in rows:
        yield CodedPacket(pts, bool(is_key), data[offset : offset + size])
        offset += size
    if offset != len(data):
        raise ValueError("cut off")
