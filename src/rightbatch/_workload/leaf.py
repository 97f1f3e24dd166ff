"""The leaves of a batch: dense, nested and sparse tensors, and packed sequences.

A leaf has a length along its examples, a slice of them, and a size in bytes.
"""

from __future__ import annotations

from typing import Any, TypeGuard, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Leaf = Tensor | PackedSequence


def is_leaf(part: Any) -> TypeGuard[Leaf]:
    return isinstance(part, Tensor | PackedSequence)


def length_of(leaf: Leaf) -> int | None:
    """Return the length of the first dimension, or the number of sequences; None for a scalar."""
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    return int(leaf.size(0)) if leaf.ndim else None


def examples_of(leaf: Leaf, start: int, stop: int) -> Leaf:
    """Return the examples from `start` to `stop`: a view for a dense tensor, else a copy."""
    if isinstance(leaf, PackedSequence):
        padded, lengths = pad_packed_sequence(leaf, batch_first=True)
        return pack_padded_sequence(
            padded[start:stop],
            lengths[start:stop],
            batch_first=True,
            enforce_sorted=leaf.sorted_indices is None,
        )
    if leaf.is_nested:
        nested = cast(Any, torch.nested).as_nested_tensor
        return cast(Tensor, nested(list(leaf.unbind()[start:stop]), layout=leaf.layout))
    if leaf.layout is torch.strided:
        return leaf[start:stop]
    rows = torch.arange(start, min(stop, leaf.size(0)), device=leaf.device)
    by_coordinates: Any = leaf.to_sparse_coo()
    chosen: Tensor = by_coordinates.index_select(0, rows)
    if leaf.layout is torch.sparse_coo:
        return chosen
    compressed: Tensor = chosen.to_sparse(layout=leaf.layout)
    return compressed


def bytes_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values, and of a sparse one's indices."""
    return sum(int(part.nbytes) for part in dense_parts(tensor))


def dense_parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors that have a nested or sparse tensor's memory; itself if it is dense."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.layout is torch.strided:
        return [tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    inner = cast(Any, tensor)
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [inner.crow_indices(), inner.col_indices(), inner.values()]
    return [inner.ccol_indices(), inner.row_indices(), inner.values()]
