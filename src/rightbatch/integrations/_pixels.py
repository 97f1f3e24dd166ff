"""Preprocess images: resize, letterbox, and write into a batch.

Resizing is OpenCV's `INTER_LINEAR`, with which the models were trained. Without OpenCV numpy
computes the same result within rounding, about ten times slower. Axes: H, W, C channels; a shape is
(height, width).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Shape = tuple[int, int]

_GRAY = 114  # of the padding, as in YOLO's training


@dataclass(frozen=True)
class Letterbox:
    """The position of an image of shape `original`, scaled and centred in a `canvas`.

    `inner` is the shape of the scaled image, `top` and `left` its offset, in canvas pixels.
    """

    original: Shape
    canvas: Shape
    inner: Shape
    top: int
    left: int

    @classmethod
    def of(cls, original: Shape, target: Shape, stride: int | None = None) -> Letterbox:
        """Return the letterbox for a `target` shape; with `stride`, with minimal padding."""
        scale = min(target[0] / original[0], target[1] / original[1])
        inner = (max(round(original[0] * scale), 1), max(round(original[1] * scale), 1))
        bars = (target[0] - inner[0], target[1] - inner[1])
        if stride is not None:
            bars = (bars[0] % stride, bars[1] % stride)
        canvas = (inner[0] + bars[0], inner[1] + bars[1])
        return cls(original, canvas, inner, top=bars[0] // 2, left=bars[1] // 2)

    def write(self, image: Image, out_HWC: NDArray[Any]) -> None:
        """Write the scaled image and its padding into `out_HWC`."""
        bottom, right = self.top + self.inner[0], self.left + self.inner[1]
        gray = _GRAY if out_HWC.dtype == np.uint8 else _GRAY / 255
        out_HWC[: self.top] = out_HWC[bottom:] = gray
        out_HWC[self.top : bottom, : self.left] = out_HWC[self.top : bottom, right:] = gray
        write(resize(image, self.inner), out_HWC[self.top : bottom, self.left : right])

    def to_original(self, boxes: NDArray[Any]) -> NDArray[np.float64]:
        """Convert boxes (x1, y1, x2, y2) from canvas to image pixels, clipped to the image."""
        height, width = self.original
        gain = np.array([width / self.inner[1], height / self.inner[0]] * 2)
        moved = (boxes - np.array([self.left, self.top] * 2)) * gain
        within: NDArray[np.float64] = np.clip(moved, 0.0, np.array([width, height] * 2))
        return within


def write(image: Image, out_HWC: NDArray[Any]) -> None:
    """Write an image into `out_HWC`: unchanged if uint8, scaled to 0 to 1 if float."""
    if out_HWC.strides[2] > out_HWC.strides[0]:  # channels first: faster in memory order
        image, out_HWC = image.transpose(2, 0, 1), out_HWC.transpose(2, 0, 1)
    if out_HWC.dtype == np.uint8:
        out_HWC[...] = image
    else:
        np.divide(image, np.float32(255), out=out_HWC, casting="same_kind")


def to_gray(image: Image) -> Image:
    """Return the luma (ITU-R BT.601, as Pillow and OpenCV have it) of an RGB image: H×W×1."""
    weighted = image @ np.array([19595, 38470, 7471], np.uint32)
    gray: Image = ((weighted + 0x8000) >> 16).astype(np.uint8)[..., None]
    return gray


def resize(image: Image, shape: Shape) -> Image:
    """Resize bilinearly between pixel centres, with replicated edges."""
    if image.shape[:2] == shape:
        return image
    cv2 = _opencv()
    if cv2 is None:
        return resize_by_numpy(image, shape)
    resized: Image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


@functools.cache
def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def resize_by_numpy(image: Image, shape: Shape) -> Image:
    """Do the same as `resize`, without OpenCV."""
    height, width, channels = image.shape
    rows, next_rows, down = _neighbours(height, shape[0])
    columns, next_columns, right = _neighbours(width, shape[1])
    places = np.arange(channels)
    columns = (columns[:, None] * channels + places).ravel()
    next_columns = (next_columns[:, None] * channels + places).ravel()
    right = np.repeat(right, channels)
    lines = np.ascontiguousarray(image).reshape(height, width * channels)

    def across(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        chosen = lines[rows]
        return _mix(chosen.take(columns, 1), chosen.take(next_columns, 1), right)

    mixed = _mix(across(rows), across(next_rows), down[:, None])
    mixed += 0.5  # rounds to nearest
    return mixed.astype(np.uint8).reshape(*shape, channels)


@functools.lru_cache(maxsize=64)
def _neighbours(
    length: int, wanted: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return for each target pixel its two source pixels and the weight of the second."""
    centres = np.clip((np.arange(wanted) + 0.5) * (length / wanted) - 0.5, 0, length - 1)
    first = centres.astype(np.intp)
    return first, np.minimum(first + 1, length - 1), (centres - first).astype(np.float32)


def _mix(one: NDArray[Any], other: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    mixed = one.astype(np.float32)
    step = other - mixed
    step *= share
    mixed += step
    return mixed
