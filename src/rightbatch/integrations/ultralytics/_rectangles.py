"""Rectangular batches (`rect=True`, and every validation), whose shape depends on their images.

Ultralytics sorts the images by their aspect ratio, and pads those of a batch to one shape. A probe
runs batches of many sizes with one data set, so it keeps the shape of each image.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from ultralytics.data.base import BaseDataset

_SHAPES = "rightbatch_shapes"


@contextmanager
def shapes_kept() -> Iterator[None]:
    """Keep the shape of each image on the data sets that are made meanwhile.

    The shape of a batch is the maximum of those of its images, along each side.
    """
    original = BaseDataset.set_rectangle

    def set_rectangle(data: Any) -> None:
        batch_size, data.batch_size = data.batch_size, 1
        try:
            original(data)
        finally:
            data.batch_size = batch_size
        setattr(data, _SHAPES, np.array(data.batch_shapes))
        _group(data, batch_size)

    BaseDataset.set_rectangle = set_rectangle
    try:
        yield
    finally:
        BaseDataset.set_rectangle = original


def is_rectangular(data: Any) -> bool:
    """Whether the batches of a data set have shapes of their own."""
    return bool(getattr(data, "rect", False)) and hasattr(data, _SHAPES)


def pad_to_largest(data: Any) -> None:
    """Pad all images to the largest shape that a batch of any size can have."""
    _pad_to(data, getattr(data, _SHAPES).max(0))


def pad_to_square(data: Any) -> None:
    """Pad all images to a square, as for a prediction of images of several shapes."""
    _pad_to(data, np.array([data.imgsz, data.imgsz]))


def random_batch(data: Any, batch_size: int) -> list[int]:
    """Return the indices of one of the epoch's batches, and pad all images to its shape."""
    examples = len(getattr(data, _SHAPES))
    start = random.randrange(0, max(examples - batch_size, 0) + 1)
    chosen = [(start + i) % examples for i in range(batch_size)]
    _pad_to(data, getattr(data, _SHAPES)[chosen].max(0))
    return chosen


def _group(data: Any, batch_size: int) -> None:
    shapes = getattr(data, _SHAPES)
    data.batch = np.arange(len(shapes)) // batch_size
    starts = range(0, len(shapes), batch_size)
    data.batch_shapes = np.array([shapes[start : start + batch_size].max(0) for start in starts])


def _pad_to(data: Any, shape: Any) -> None:
    data.batch = np.zeros(len(getattr(data, _SHAPES)), dtype=int)
    data.batch_shapes = np.array([shape])
