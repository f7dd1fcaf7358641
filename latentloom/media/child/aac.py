"""Sound encoded anew as AAC, cut to the sample."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.codec.context import Flags
from av.container import OutputContainer
from av.packet import Packet

from latentloom.media.child.channel import Array
from latentloom.media.child.tracks import Cut, name_track

RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
"""Sample rates of AAC; sound of another rate becomes 48 kHz."""
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
"""Layouts of AAC; files that name none, or an odd one, are taken for these."""
BITS_A_CHANNEL = 96_000
JITTER_SECONDS = 0.005
"""Times that containers round; a larger gap in the sound is filled with silence."""
FRAME_SAMPLES = 1024


class AacTrack:
    """Decodes one audio stream, cuts it, encodes it."""

    def __init__(self, source: Any, output: OutputContainer, cut: Cut) -> None:
        context = source.codec_context
        self._rate = context.sample_rate if context.sample_rate in RATES else 48000
        self._layout = LAYOUTS.get(context.channels, context.layout.name)
        self._cut = cut
        self._resampler = AudioResampler("fltp", self._layout, self._rate)
        self._samples: Array = np.zeros((context.channels, 0), np.float32)
        self._at = 0
        self._has_begun = False
        self._stream: Any = output.add_stream("aac", rate=self._rate)
        encoder = self._stream.codec_context
        encoder.layout = self._layout
        encoder.bit_rate = BITS_A_CHANNEL * context.channels
        encoder.flags |= Flags.bitexact
        encoder.thread_count = 1
        name_track(source, self._stream)

    def feed(self, packet: Packet[Any]) -> Iterator[Packet[Any]]:
        """Take a packet of the source (the last is empty), give coded packets."""
        try:
            frames = packet.decode()
        except av.FFmpegError:
            # A damaged packet leaves a gap, which silence fills.
            frames = []
        for frame in cast("list[AudioFrame]", frames):
            self._take(frame)
            yield from self._encode(FRAME_SAMPLES)
        if not packet.size:
            yield from self._encode(1)
            yield from self._stream.encode(None)

    def _take(self, frame: AudioFrame) -> None:
        if frame.pts is None or frame.time_base is None:
            return
        seconds = frame.pts * frame.time_base - self._cut.start
        made = self._resampler.resample(frame)
        if not made:
            return
        samples = np.concatenate([part.to_ndarray() for part in made], axis=1)
        place = round(seconds * self._rate)
        if self._has_begun and abs(place - self._end) < JITTER_SECONDS * self._rate:
            place = self._end
        self._place(samples, place)

    @property
    def _end(self) -> int:
        return self._at + int(self._samples.shape[1])

    def _place(self, samples: Array, place: int) -> None:
        """Append samples that belong at ``place``, less what is there or outside the cut."""
        skip = max(0, (self._end if self._has_begun else 0) - place)
        samples, place = samples[:, skip:], place + skip
        if self._cut.stop is not None:
            room = round((self._cut.stop - self._cut.start) * self._rate) - place
            samples = samples[:, : max(0, room)]
        if not samples.shape[1]:
            return
        if not self._has_begun:
            self._has_begun, self._at = True, place
        silence = np.zeros((samples.shape[0], place - self._end), np.float32)
        self._samples = np.concatenate([self._samples, silence, samples], axis=1)

    def _encode(self, at_least: int) -> Iterator[Packet[Any]]:
        while self._samples.shape[1] >= at_least:
            part = np.ascontiguousarray(self._samples[:, :FRAME_SAMPLES])
            self._samples = self._samples[:, FRAME_SAMPLES:]
            frame = AudioFrame.from_ndarray(part, "fltp", self._layout)
            frame.sample_rate = self._rate
            frame.pts, frame.time_base = self._at, Fraction(1, self._rate)
            self._at += part.shape[1]
            yield from self._stream.encode(frame)
