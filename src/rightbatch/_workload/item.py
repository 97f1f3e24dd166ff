"""Items of a data set, before they are collated: the first ones, and the size of one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from rightbatch._workload.leaf import bytes_of

_DEPTH = 6


def first_items(data: Any, number: int) -> list[Any]:
    """Return the first `number` items that can be read; an unreadable one is None."""
    if isinstance(data, IterableDataset):
        items = iter(data)
    else:
        items = (data[index] for index in range(len(data)))
    return list(islice((item for item in items if item is not None), number))


def item_bytes(item: Any, depth: int = _DEPTH) -> int:
    """Return the bytes of the arrays, texts and images in an item, in any nesting.

    It orders the items of a data set by size; what a collate makes of them is not known.

    >>> item_bytes({"text": "four", "pixels": [bytes(10)], "label": 3})
    22
    """
    if isinstance(item, Tensor):
        return bytes_of(item)
    if isinstance(item, str | bytes | bytearray):
        return len(item)
    if isinstance(item, bool | int | float | complex):
        return 8
    size = getattr(item, "nbytes", None)
    if isinstance(size, int):  # a NumPy array
        return size
    if item is None or depth == 0:
        return 0
    if isinstance(item, Mapping):
        return sum(item_bytes(inner, depth - 1) for inner in item.values())
    if isinstance(item, list | tuple | set | frozenset):
        return sum(item_bytes(inner, depth - 1) for inner in item)
    bands = getattr(item, "getbands", None)
    if callable(bands):  # an image of Pillow, whose pixels may not be decoded yet
        return int(item.width * item.height * len(bands()))
    own = getattr(item, "__dict__", None)
    return item_bytes(own, depth - 1) if isinstance(own, dict) else 0
