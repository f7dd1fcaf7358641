"""Where one scene ends and another begins, by FFmpeg's scdet on small pictures."""

from __future__ import annotations

from av.filter import Graph
from av.video.frame import VideoFrame

from latentloom.media.child.channel import Channel
from latentloom.media.child.deinterlace import CLOCK
from latentloom.media.child.source import FrameSource
from latentloom.schemas.media import VideoInfo

WIDTH = 192
"""Width at which pictures are compared; it costs a fraction of decoding them."""
CONTEXT = 2
"""Frames before a range that its first score depends on."""
_SCORE = "lavfi.scd.score"


def find_cuts(
    channel: Channel, path: str, info: VideoInfo, start: int, stop: int, threshold: float
) -> list[int]:
    """Return the frames of a range that begin a scene.

    Args:
        channel: Told of progress.
        path: Path of the file.
        info: Its index.
        start: First frame.
        stop: One past the last frame.
        threshold: scdet's score, 0 to 100, from which a frame begins a scene.
    """
    source = FrameSource(path, info)
    graph: Graph | None = None
    found = []
    try:
        for index in range(max(0, start - CONTEXT), stop):
            frame = source.get(index, channel)
            if frame is None:
                continue  # A frame that is missing is reported where it is read.
            graph = graph or _make_graph(frame)
            frame.pts, frame.time_base = index, CLOCK
            graph.vpush(frame)
            if index >= max(1, start) and _score(graph.vpull()) >= threshold:
                found.append(index)
            elif index < max(1, start):
                graph.vpull()
    finally:
        source.close()
    return found


def _score(frame: VideoFrame) -> float:
    return float(frame.metadata.get(_SCORE, 0.0))


def _make_graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=CLOCK
    )
    scale = graph.add("scale", f"w={min(WIDTH, frame.width)}:h=-2:flags=area")
    scdet = graph.add("scdet", "threshold=100")
    graph.link_nodes(source, scale, scdet, graph.add("buffersink")).configure()
    return graph
