"""One decoded frame to RGB and back: matrix, range, size, rotation. The same bytes every time."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from latentloom.errors import MediaError
from latentloom.media.child.channel import Array
from latentloom.media.child.files import MAX_PIXELS
from latentloom.schemas.media import ColorTags, Fit, VideoInfo

SCALING = int(
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
"""Bicubic, at full chroma resolution, by the code path that is the same on every CPU."""
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""H.273's matrix to libswscale's."""
RANGES = {"limited": ColorRange.MPEG, "full": ColorRange.JPEG}
WHITE = {"limited": 255 << 8, "full": 1023 << 6}
"""What libswscale makes of white in 16 bits: it shifts instead of scaling to 65535."""


class Picture:
    """Turns the frames of one file into arrays of one size."""

    def __init__(
        self, info: VideoInfo, size: tuple[int, int], keep_size: bool, fit: Fit, high: bool
    ) -> None:
        self._info = info
        self._color = info.color.resolve(info.height)
        self._turns = info.rotation // 90
        self._size = (size[1], size[0]) if self._turns % 2 else size
        self._keep_size = keep_size
        self._fit = fit
        self._high = high
        self._reformatter = VideoReformatter()

    def render(self, frame: VideoFrame) -> Array:
        """Return the upright picture as (H, W, 3) RGB.

        Args:
            frame: A decoded frame.
        """
        inner = self._inner_size(frame.width, frame.height)
        scaled = self._scale(frame, inner)
        return np.ascontiguousarray(np.rot90(_center(scaled, self._size), self._turns))

    def _scale(self, frame: VideoFrame, size: tuple[int, int]) -> Array:
        is_rgb = frame.format.is_rgb
        matrix = None if is_rgb else _matrix(self._color)
        rgb = self._reformatter.reformat(
            frame,
            *size,
            "rgb48le" if self._high else "rgb24",
            src_colorspace=matrix,
            interpolation=SCALING,
            src_color_range=RANGES["full" if is_rgb else self._color.range],
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        array = rgb.to_ndarray()
        if self._high and not is_rgb:
            return _stretch(array, WHITE[self._color.range], 65535)
        return array

    def _inner_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size to scale to before the centre is cut out or padded."""
        if self._keep_size or self._fit == "stretch":
            return self._size
        shown = width * Fraction(*self._info.sample_aspect_ratio)
        ratios = self._size[0] / shown, Fraction(self._size[1], height)
        if self._fit == "cover":
            ratio = max(ratios)
            inner = (
                max(self._size[0], round(shown * ratio)),
                max(self._size[1], round(height * ratio)),
            )
        else:
            ratio = min(ratios)
            inner = (
                min(self._size[0], max(1, round(shown * ratio))),
                min(self._size[1], max(1, round(height * ratio))),
            )
        if inner[0] * inner[1] > MAX_PIXELS:
            raise MediaError(
                f"a picture of {width}x{height} cannot cover {self._size[0]}x{self._size[1]}: "
                f"{inner[0]}x{inner[1]} pixels would be needed. Use fit: contain or stretch."
            )
        return inner


class Unpicture:
    """Turns RGB arrays into frames for an encoder."""

    def __init__(self, pix_fmt: str, color: ColorTags) -> None:
        self._pix_fmt = pix_fmt
        self._color = color
        self._is_rgb = av.VideoFormat(pix_fmt).is_rgb
        self._reformatter = VideoReformatter()

    def make(self, array: Array) -> VideoFrame:
        """Return a frame with the colour tags of the stream.

        Args:
            array: (H, W, 3) RGB, uint8 or uint16.
        """
        high = array.dtype == np.uint16
        if high and not self._is_rgb and self._color.range == "limited":
            array = _stretch(array, 65535, WHITE["limited"])
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(array), "rgb48le" if high else "rgb24")
        made = self._reformatter.reformat(
            frame,
            format=self._pix_fmt,
            dst_colorspace=None if self._is_rgb else _matrix(self._color),
            interpolation=SCALING,
            src_color_range=ColorRange.JPEG,
            dst_color_range=RANGES[self._color.range],
            threads=1,
        )
        made.colorspace = self._color.matrix
        made.color_range = RANGES[self._color.range]
        made.color_trc = self._color.transfer
        made.color_primaries = self._color.primaries
        return made


def _matrix(color: ColorTags) -> int:
    try:
        return MATRICES[color.matrix]
    except KeyError as error:
        raise MediaError(
            f"colour matrix {color.matrix} (H.273) cannot be converted to RGB. "
            "Convert the video to BT.709 or BT.2020 first."
        ) from error


def _stretch(array: Array, white: int, wanted: int) -> Array:
    scaled = (array.astype(np.uint32) * wanted + white // 2) // white
    return np.minimum(scaled, 65535).astype(np.uint16)


def _center(array: Array, size: tuple[int, int]) -> Array:
    """Cut the centre out of what is too large, put what is too small in the centre of black."""
    width, height = size
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return array[top : top + height, left : left + width]
    padded = np.zeros((height, width, 3), array.dtype)
    top, left = (height - array.shape[0]) // 2, (width - array.shape[1]) // 2
    padded[top : top + array.shape[0], left : left + array.shape[1]] = array
    return padded
