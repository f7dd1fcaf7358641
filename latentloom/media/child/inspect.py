"""Read a written file again, to be sure of it."""

from __future__ import annotations

from fractions import Fraction

from latentloom.media.child import files
from latentloom.media.child.channel import Channel
from latentloom.media.child.facts import codec_name


def video_times(path: str, channel: Channel) -> list[Fraction]:
    """Return the presentation times of all frames in seconds, in order.

    Args:
        path: A file of our own.
        channel: Told of progress.
    """
    times: list[Fraction] = []
    with files.open_file(path) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pts is not None:
                channel.progress(len(times))
                times.append(packet.pts * packet.time_base)
    return sorted(times)


def count_packets(path: str, channel: Channel) -> list[tuple[str, str, int]]:
    """Return kind, codec and number of packets of each stream.

    Args:
        path: A file of our own.
        channel: Told of progress.
    """
    with files.open_file(path) as container:
        counts = dict.fromkeys((stream.index for stream in container.streams), 0)
        for packet in container.demux():
            channel.progress(0)
            counts[packet.stream.index] += packet.pts is not None
        return [
            (stream.type, codec_name(stream), counts[stream.index]) for stream in container.streams
        ]
