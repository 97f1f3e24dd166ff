"""Batches of any size as shapes only, derived from a few small real batches.

A batch of thousands of images need not be collated to be followed: its tensors differ from those of
a small one in the length of a dimension. Four real batches, of the largest examples, show which
dimension that is, and that its length is linear in the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._workload.batch import Batch, batch_bytes, map_tensors, tensors

REAL = (2, 3, 5)
"""Sizes of the real batches; the third one checks the line through the first two."""
LARGER = 33
"""The size of a fourth batch: a collate can pad to multiples of 8 or 32 examples, or pack examples
into rows of thousands of tokens, and lengths that grow in steps are constant for a few examples."""
MOST_BYTES = 2**29
"""The fourth batch has fewer examples if it had more bytes than these."""
MOST_COLLATED = 8
"""Examples up to which a batch is collated as a whole."""
_APART = 0.05
"""A fourth batch this far from the line is a step, and not the rounding of one."""


def shaped_batch(
    collate: Callable[[Sequence[int]], Batch],
    indices: Sequence[int],
    mode: FakeTensorMode,
    *,
    sizes_differ: bool,
) -> Batch | None:
    """Return the batch of `indices` with fake tensors; None if it has to be collated.

    `collate` returns the real batch of some indices. `indices` begin with the largest examples, so
    that what is padded to the longest has its length. A batch has to be collated if it is small, if
    it has lists with an element per example, values that depend on the number of examples, tensors
    that are not dense, none that grows, or one that may grow in steps; and, where `sizes_differ`,
    if examples are concatenated.
    """
    if len(indices) <= MOST_COLLATED:
        return None
    sizes, batches = _real_batches(collate, indices)
    if not _are_alike(batches) or _has_steps(sizes, batches):
        return None
    shapes = []
    leaves = list(tensors(batches[-1]))
    for alike in zip(*map(tensors, batches), strict=True):
        shape = _shape_at(len(indices), alike, sizes, sizes_differ=sizes_differ)
        if shape is None:
            return None
        shapes.append(shape)
    with mode:
        made: Iterator[Tensor] = iter([_fake(*pair) for pair in zip(leaves, shapes, strict=True)])
        return map_tensors(batches[-1], lambda _: next(made))


def grows_in_steps(collate: Callable[[Sequence[int]], Batch], indices: Sequence[int]) -> bool:
    """Return whether small batches say nothing about the sizes of larger ones.

    They do not if a length, or the bytes of all tensors, is on a line for a few examples and not
    for `LARGER`; or if more than half of the bytes are constant, which may be the first step.
    """
    return _has_steps(*_real_batches(collate, indices))


def _has_steps(sizes: Sequence[int], batches: Sequence[Batch]) -> bool:
    total = [batch_bytes(batch) for batch in batches]
    found = [total]
    if _are_alike(batches):
        for alike in zip(*map(tensors, batches), strict=True):
            found += map(list, zip(*(leaf.shape for leaf in alike), strict=True))
    slope = (total[1] - total[0]) / (sizes[1] - sizes[0])
    constant = total[0] - slope * sizes[0]
    return 2 * constant > total[-1] or any(_is_step(lengths, sizes) for lengths in found)


def _is_step(lengths: Sequence[int], sizes: Sequence[int]) -> bool:
    """Return whether all but the last length are on a line, and that one is not."""
    slope = (lengths[1] - lengths[0]) / (sizes[1] - sizes[0])
    line = [lengths[0] + slope * (size - sizes[0]) for size in sizes]
    if any(found != expected for found, expected in zip(lengths[:-1], line[:-1], strict=True)):
        return False
    return abs(lengths[-1] - line[-1]) > _APART * line[-1]


def _real_batches(
    collate: Callable[[Sequence[int]], Batch], indices: Sequence[int]
) -> tuple[list[int], list[Batch]]:
    """Return sizes and real batches, the fourth one as large as its bytes allow."""
    batches = [collate(indices[:size]) for size in REAL]
    allowed = MOST_BYTES * REAL[-1] // max(batch_bytes(batches[-1]), 1)
    larger = min(len(indices), LARGER, max(allowed, MOST_COLLATED))
    return [*REAL, larger], [*batches, collate(indices[:larger])]


def _are_alike(batches: Sequence[Batch]) -> bool:
    return all(_is_alike(batch, batches[-1]) for batch in batches[:-1])


def _is_alike(batch: Batch, other: Batch) -> bool:
    """Return whether two batches differ in their tensors' lengths only."""
    leaves, others = list(tensors(batch)), list(tensors(other))
    visited: list[Tensor] = []

    def visit(leaf: Tensor) -> Tensor:
        visited.append(leaf)
        return leaf

    map_tensors(batch, visit)
    if len(leaves) != len(others) or [*map(id, visited)] != [*map(id, leaves)]:
        return False  # a packed sequence, which is not rebuilt from its tensors
    if any(a.dtype != b.dtype or a.ndim != b.ndim for a, b in zip(leaves, others, strict=True)):
        return False
    try:
        skeletons = (map_tensors(one, lambda _: None) for one in (batch, other))
        return bool(next(skeletons) == next(skeletons))
    except (TypeError, ValueError, RuntimeError):  # values that are not compared as a whole
        return False


def _shape_at(
    size: int, leaves: Sequence[Tensor], sizes: Sequence[int], *, sizes_differ: bool
) -> list[int] | None:
    """Return the shape of a tensor in a batch of `size` examples; None if it is not known.

    `leaves` are the tensor in batches of `sizes` examples.
    """
    if any(leaf.layout is not torch.strided or leaf.is_nested for leaf in leaves):
        return None
    if not torch.ops.aten.is_non_overlapping_and_dense(leaves[-1]):
        return None
    shape = []
    for lengths in zip(*(leaf.shape for leaf in leaves), strict=True):
        slope = _slope(lengths, sizes)
        if slope is None:
            return None
        if slope not in (0, 1) and sizes_differ:
            return None  # examples are concatenated, and the following ones are smaller
        shape.append(slope * size if slope else lengths[0])
    return shape


def _slope(lengths: Sequence[int], sizes: Sequence[int]) -> int | None:
    """Return what an example adds to a length; None if that is no constant, or not all of it."""
    slope = (lengths[1] - lengths[0]) // (sizes[1] - sizes[0])
    rest = lengths[0] - slope * sizes[0]
    if any(length != rest + slope * size for length, size in zip(lengths, sizes, strict=True)):
        return None
    return None if slope and rest else slope


def _fake(leaf: Tensor, shape: Sequence[int]) -> Any:
    """Return a tensor of this shape with the leaf's type and order of dimensions in memory."""
    strides = leaf.stride()
    order = list(range(leaf.ndim))
    if not leaf.is_contiguous():  # strides of dimensions of one element mean nothing
        order.sort(key=lambda d: (-strides[d], d))
    empty = torch.empty([shape[d] for d in order], dtype=leaf.dtype)
    return empty.permute([order.index(d) for d in range(leaf.ndim)])
