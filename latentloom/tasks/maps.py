"""Read the frames of side inputs that belong to frames of the source."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentloom.media.decode import FrameReader
from latentloom.media.images import list_images, read_images
from latentloom.schemas.facts import MapFacts
from latentloom.schemas.media import Fit
from latentloom.schemas.plan import Plan
from latentloom.storage.localize import localize, sources_folder


def read_map(
    plan: Plan, fields: Mapping[str, Any], start: int, stop: int, *, high_bit_depth: bool = False
) -> NDArray[Any]:
    """Read what belongs to source frames ``[start, stop)``; one image belongs to all.

    Args:
        plan: The plan, whose facts know where maps lie.
        fields: What the stage's key says of the map: digest, size and fit.
        start: First absolute source frame.
        stop: One past the last.
        high_bit_depth: uint16 pictures, 0..65535, instead of uint8.

    Returns:
        ``(F, H, W, 3)`` RGB.

    Raises:
        MediaError: If a picture is missing or damaged.
    """
    facts = next(m for m in plan.facts.maps.values() if m.digest == fields["digest"])
    still = facts.num_frames == 1
    a, b = (0, 1) if still else (start, stop)
    height, width = fields["size"]
    if facts.info is None:
        found = read_images(
            list_images(Path(facts.path))[a:b],
            width=width,
            height=height,
            fit=fields["fit"],
            high_bit_depth=high_bit_depth,
        )
    else:
        text = facts.model_dump_json()
        found = _reader(text, width, height, fields["fit"], high_bit_depth).read(a, b)
    return np.repeat(found, stop - start, axis=0) if still else found


@functools.lru_cache(maxsize=8)
def _reader(
    facts_json: str, width: int, height: int, fit: Fit, high_bit_depth: bool
) -> FrameReader:
    facts = MapFacts.model_validate_json(facts_json)
    assert facts.info is not None
    path = localize(facts.uri, sources_folder())
    return FrameReader(
        path, facts.info, width=width, height=height, fit=fit, high_bit_depth=high_bit_depth
    )
