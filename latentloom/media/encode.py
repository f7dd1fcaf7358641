"""Encode frames into segments: exact times, a key frame first, the same bytes every time."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from latentloom.errors import MediaError
from latentloom.media import process
from latentloom.schemas.media import EncodeSettings

Array = np.ndarray[Any, np.dtype[Any]]


def encode_segment(frames: Iterable[Array], pts: Sequence[int], settings: EncodeSettings) -> bytes:
    """Encode one segment; frames are taken as they come, never all at once.

    Args:
        frames: Arrays of (F, H, W, 3) RGB, uint8 or uint16, of any lengths.
        pts: Presentation time of each frame in ticks of ``settings.time_base``.
        settings: How to encode.

    Returns:
        Bytes for ``join_segments``.

    Raises:
        MediaError: The encoder refuses the settings, or frames and pts differ in number.
    """
    if not pts or any(a >= b for a, b in pairwise(pts)):
        raise MediaError("a segment needs frames, and pts that rise from frame to frame")
    key = uuid.uuid4().hex
    arguments = {"key": key, "settings": settings.model_dump(mode="json"), "pts": list(pts)}
    _call("open_encoder", arguments, settings)
    finish = False
    try:
        for chunk in frames:
            for frame in _checked(chunk, settings):
                # One by one: the child holds a copy of what it is sent.
                message = {"key": key, "shape": frame.shape, "dtype": frame.dtype.name}
                _call("encode", message, settings, frame.data.cast("B"))
        finish = True
    finally:
        data = _call("close_encoder", {"key": key, "finish": finish}, settings)
    return data


def _call(
    op: str, arguments: dict[str, Any], settings: EncodeSettings, payload: bytes | memoryview = b""
) -> bytes:
    what = f"encoding {settings.codec}"
    limit = process.ENCODING_SECONDS
    return process.call(op, arguments, payload, what=what, limit_seconds=limit)[1]


def _checked(chunk: Array, settings: EncodeSettings) -> Array:
    size = (settings.height, settings.width, 3)
    if chunk.ndim != 4 or chunk.shape[1:] != size or chunk.dtype not in (np.uint8, np.uint16):
        raise MediaError(
            f"frames of shape {chunk.shape} and type {chunk.dtype} for a video of {size}; "
            "give uint8 or uint16 frames of (F, H, W, 3)"
        )
    return np.ascontiguousarray(chunk)
