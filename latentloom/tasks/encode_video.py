"""Frames to one encoded segment of the output, a checkpoint like any other."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from latentloom.media.encode import encode_segment
from latentloom.schemas.media import EncodeSettings
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.overlap import one_ahead
from latentloom.tasks.tensors import Array


def encode_video(chunk: OpenChunk) -> Array:
    """Encode the frames of a segment; its bytes are stored as an array of uint8."""
    settings = EncodeSettings.model_validate(chunk.variant.fields["settings"])
    start, stop = chunk.stage.span(chunk.chunk)
    pts = chunk.plan.facts.source.info.faster(chunk.stage.rate).pts[start:stop]
    with closing(one_ahead(chunk.iterate_frames())) as frames:
        data = encode_segment(frames, pts, settings)
    return np.frombuffer(data, dtype=np.uint8)
