"""Read any range of frames of a video, exactly, as RGB arrays. The same bytes for any ranges."""

from __future__ import annotations

import importlib.metadata
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from latentloom.errors import MediaError
from latentloom.media import process
from latentloom.schemas.media import Fit, VideoInfo

Frames = np.ndarray[Any, np.dtype[np.uint8] | np.dtype[np.uint16]]


class FrameReader:
    """Frames of one file at one size.

    Cheap to make; the child of this process opens the file at the first read and keeps its place,
    so that reading on needs no seek. Threads may share a reader.
    """

    def __init__(
        self,
        path: str | Path,
        info: VideoInfo,
        *,
        width: int | None = None,
        height: int | None = None,
        fit: Fit = "cover",
        deinterlace: bool = False,
        high_bit_depth: bool = False,
        on_damage: Literal["error", "hold"] = "error",
    ) -> None:
        """Describe the frames to read; nothing is opened yet.

        Args:
            path: Path of the file.
            info: What ``probe`` found in it.
            width: Width of frames in pixels; None for both sides is the source's own size.
            height: Height of frames in pixels.
            fit: Fill the size and cut what is too much (cover), show all with black margins
                (contain), or distort (stretch).
            deinterlace: Make both fields of a frame one picture.
            high_bit_depth: uint16 frames, 0..65535, instead of uint8.
            on_damage: "hold" repeats the frame before one that cannot be decoded.
        """
        self.path = os.path.abspath(path)
        self.info = info
        self.width, self.height = info.output_size(width, height)
        self.dtype: np.dtype[Any] = np.dtype(np.uint16 if high_bit_depth else np.uint8)
        self._key = uuid.uuid4().hex
        self._options = {
            "path": self.path,
            "width": width,
            "height": height,
            "fit": fit,
            "deinterlace": deinterlace,
            "high_bit_depth": high_bit_depth,
            "on_damage": on_damage,
        }

    def read(self, start: int, stop: int) -> Frames:
        """Return frames [start, stop) as (F, H, W, 3) RGB, upright.

        Args:
            start: First frame.
            stop: One past the last frame.

        Raises:
            MediaError: A frame is damaged or missing, or the decoder crashed or hung.
            ValueError: The range does not lie in the video.
        """
        if not 0 <= start <= stop <= self.info.num_frames:
            raise ValueError(f"frames {start}:{stop} of a video of {self.info.num_frames} frames")
        out: Frames = np.zeros((stop - start, self.height, self.width, 3), self.dtype)
        if start == stop:
            return out
        num_read = 0

        def take(slot: int, fill: Callable[[memoryview], None]) -> None:
            nonlocal num_read
            fill(memoryview(out[slot]).cast("B"))
            num_read += 1

        arguments = {"key": self._key, "start": start, "stop": stop}
        what = f"decoding {self.path!r}, frames {start}:{stop}"
        for _ in range(MAX_OPENINGS):
            if process.call("read", arguments, what=what, sink=take)[0]["known"]:
                break
            self._open()
        if num_read != stop - start:
            raise MediaError(f"{what}: only {num_read} frames came. Run the same command again.")
        return out

    def close(self) -> None:
        """Let the child close the file; reading again opens it anew."""
        if process.is_running():
            process.call("close_reader", {"key": self._key}, what=f"closing {self.path!r}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> None:
        text = self.info.model_dump_json().encode()
        what = f"opening {self.path!r}"
        process.call("open_reader", {"key": self._key, **self._options}, text, what=what)


MAX_OPENINGS = 4
"""Other threads may push a reader out of the child before it is read."""


def decoder_version() -> str:
    """Return what decoded and encoded bytes depend on besides parameters: PyAV's version."""
    return "av " + importlib.metadata.version("av")
