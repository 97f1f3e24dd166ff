"""Batches of Ultralytics: images, with rows for their objects in tensors of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_OF_OBJECTS = ("cls", "bboxes", "batch_idx", "keypoints", "angle")
"""Tensors with a row per object; `batch_idx` is the index of its image."""
_MASKS = "masks"
"""One per image with `overlap_mask=True`, one per object without."""


def images_in(batch: Mapping[str, Any]) -> int:
    """Return the number of images of a batch."""
    return len(batch["img"])


def split(batch: Mapping[str, Any], n: int, *, overlap: bool = True) -> Sequence[dict[str, Any]]:
    """Split a batch into parts of at most `n` images with their objects.

    `overlap` is Ultralytics' `overlap_mask`.
    """
    images = images_in(batch)
    starts = range(0, images, n)
    return [_cut(batch, start, min(start + n, images), images, overlap) for start in starts]


def _cut(
    batch: Mapping[str, Any], start: int, stop: int, images: int, overlap: bool
) -> dict[str, Any]:
    index = batch.get("batch_idx")
    mine = None if index is None else (index.flatten() >= start) & (index.flatten() < stop)

    def cut(key: str, value: Any) -> Any:
        if mine is not None and isinstance(value, Tensor) and _is_per_object(key, overlap):
            chosen = value[mine.to(value.device)]
            return chosen - start if key == "batch_idx" else chosen
        if isinstance(value, Tensor | list | tuple) and len(value) == images:
            return value[start:stop]
        return value

    return {key: cut(key, value) for key, value in batch.items()}


def with_objects(
    batch: dict[str, Any], images: int, objects: int, *, overlap: bool = True
) -> dict[str, Any]:
    """Return the batch with `objects` labels per image, by repeating the existing ones.

    How many objects remain after a mosaic is random; an epoch may need memory for the largest
    number. `overlap` is Ultralytics' `overlap_mask`.
    """
    owner = batch["batch_idx"].flatten().long()
    if len(owner) == 0 or objects == 0:
        return batch
    rows = []
    for image in range(images):
        own = torch.nonzero(owner == image).flatten()
        own = own if len(own) else torch.zeros(1, dtype=torch.long)
        rows.append(own[torch.arange(max(objects, len(own))) % len(own)])
    chosen = torch.cat(rows)
    repeated = {
        key: value[chosen]
        for key, value in batch.items()
        if isinstance(value, Tensor) and _is_per_object(key, overlap)
    }
    counts = torch.tensor([len(row) for row in rows])
    index = torch.arange(images).repeat_interleave(counts).to(batch["batch_idx"])
    repeated["batch_idx"] = index.reshape(-1, *batch["batch_idx"].shape[1:])
    return batch | repeated


def _is_per_object(key: str, overlap: bool) -> bool:
    return key in _OF_OBJECTS or (key == _MASKS and not overlap)
