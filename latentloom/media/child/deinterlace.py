"""Both fields of a frame to one progressive frame, with FFmpeg's bwdif, one frame for each.

The filter looks at one frame before and one after. Each frame gets both as they are in the file, so
that its result does not depend on where reading began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import av
from av.filter import Graph
from av.video.frame import VideoFrame

from latentloom.schemas.media import VideoInfo

CLOCK = Fraction(1, 25)
CONTEXT = 1
"""Frames that the filter looks at on each side."""


def deinterlace(
    get: Callable[[int], VideoFrame], info: VideoInfo, start: int, stop: int
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield progressive frames with their indices.

    Args:
        get: Gives the decoded frame with an index.
        info: What is known of the file.
        start: First frame.
        stop: One past the last frame.
    """
    first, end = max(0, start - CONTEXT), min(info.num_frames, stop + CONTEXT)
    graph: Graph | None = None
    index = first
    for at in [*range(first, end), None]:
        if at is not None:
            frame = get(at)
            graph = graph or _make_graph(frame, info)
            # The filter only wants times that rise; a held frame comes twice.
            frame.pts, frame.time_base = at, CLOCK
            graph.vpush(frame)
        elif graph is not None:
            graph.vpush(None)
        for made in _pull(graph):
            if start <= index < stop:
                yield index, made
            index += 1


def _make_graph(frame: VideoFrame, info: VideoInfo) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=CLOCK
    )
    # Frames carry their own parity; a container that says "bottom" may know better.
    parity = "bff" if info.field_order == "bottom" else "auto"
    bwdif = graph.add("bwdif", f"mode=send_frame:parity={parity}:deint=all")
    graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
    return graph


def _pull(graph: Graph | None) -> Iterator[VideoFrame]:
    while graph is not None:
        try:
            yield graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
