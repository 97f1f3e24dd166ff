"""Batches: tensors in any nesting of tuples, lists, mappings and dataclasses.

Counts, splits and moves batches of unknown types. The number of examples is the leading dimension
that all tensors share; if they share none (detection targets, for example), the length that all
top-level containers share. For other batches the user passes `count=` and `split=`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rightbatch._errors import UsageError

Batch = Any


def count_examples(batch: Batch) -> int:
    """Return the number of examples in a batch.

    Raises:
        UsageError: if the number is ambiguous; pass `count=` (and `split=`) to the `Workload`.

    >>> count_examples({"image": torch.zeros(8, 3, 32, 32), "label": torch.zeros(8)})
    8
    """
    _refuse_packed(batch)
    leading = _leading(batch)
    if len(leading) == 1:
        return leading.pop()
    lengths = {len(part) for part in _parts(batch) if _has_length(part)}
    if len(lengths) == 1:
        return lengths.pop()
    found = f"tensors with leading dimensions {sorted(leading)}" if leading else "no tensors"
    raise UsageError(
        f"cannot determine the number of examples in a batch of type {type(batch).__name__} "
        f"({found}); pass count=, a function of the batch, and split=, a function of (batch, n), "
        "to Workload"
    )


def split_batch(batch: Batch, n: int) -> Sequence[Batch]:
    """Split a batch into parts of at most `n` examples, in order; views, no copies.

    Scalars, strings and None are in every part. A list with one element per example is split like
    a tensor.

    Raises:
        UsageError: if the number of examples is ambiguous, or a tensor's first dimension is not
            the examples; pass `split=`.
    """
    if n < 1:
        raise UsageError(f"a part has at least 1 example, got {n}")
    total = count_examples(batch)
    shared = _leading(batch) == {total}

    def cut(part: Any, start: int, stop: int) -> Any:
        if isinstance(part, Tensor):
            return _slice(part, total, shared, start, stop)
        # A batch is made of fields, even where it has as many fields as examples.
        return _rebuild(part, lambda inner: _slice(inner, total, shared, start, stop))

    return [cut(batch, start, min(start + n, total)) for start in range(0, total, n)]


def to_device(batch: Batch, device: str | torch.device) -> Batch:
    """Move every tensor to `device`; tensors that are already there are not copied."""
    return map_tensors(batch, lambda leaf: leaf.to(device, non_blocking=True))


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of the batch's tensors."""
    return sum(leaf.nbytes for leaf in tensors(batch))


def tensors(batch: Batch) -> Iterator[Tensor]:
    """Iterate over all tensors in the nesting."""
    if isinstance(batch, Tensor):
        yield batch
    else:
        for part in _parts(batch):
            yield from tensors(part)


def map_tensors(batch: Batch, function: Callable[[Tensor], Any]) -> Batch:
    """Apply `function` to every tensor, and keep the nesting."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, PackedSequence):
        return batch.to(function(batch.data).device)
    return _rebuild(batch, lambda part: map_tensors(part, function))


def _slice(part: Any, total: int, shared: bool, start: int, stop: int) -> Any:
    if isinstance(part, Tensor):
        if part.ndim == 0:
            return part
        if len(part) == total:
            return part[start:stop]
        raise UsageError(
            f"cannot split a tensor of shape {tuple(part.shape)} in a batch of {total} examples: "
            "its first dimension is not the examples; pass split=, a function of (batch, n), to "
            "Workload"
        )
    if _is_per_example(part, total, shared):
        return part[start:stop]
    return _rebuild(part, lambda inner: _slice(inner, total, shared, start, stop))


def _is_per_example(part: Any, total: int, shared: bool) -> bool:
    """Return whether a list inside a batch has one element per example, not one per field.

    If all tensors share their leading dimension, an element as long as the batch is a field.
    """
    if not isinstance(part, list | tuple) or len(part) != total or _is_named(part):
        return False
    return not (shared and any(_has_length(x) and len(x) == total for x in part))


def _refuse_packed(batch: Batch) -> None:
    if isinstance(batch, PackedSequence):
        raise UsageError(
            "a PackedSequence cannot be counted or split automatically; pass count= and split= to "
            "Workload"
        )
    for part in _parts(batch):
        _refuse_packed(part)


def _leading(batch: Batch) -> set[int]:
    return {len(leaf) for leaf in tensors(batch) if leaf.ndim > 0}


def _parts(batch: Batch) -> Sequence[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return ()


def _has_length(part: Any) -> bool:
    return isinstance(part, list | tuple) or (isinstance(part, Tensor) and part.ndim > 0)


def _is_named(part: Any) -> bool:
    return isinstance(part, tuple) and hasattr(part, "_fields")


def _rebuild(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    if isinstance(batch, Mapping):
        rebuilt = {key: function(value) for key, value in batch.items()}
        if type(batch) is dict:
            return rebuilt
        try:  # transformers' BatchEncoding and similar types are constructed from a dict
            return cast(Any, type(batch))(rebuilt)
        except TypeError:
            return rebuilt
    if _is_named(batch):
        return type(batch)(*(function(part) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(function(part) for part in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = {f.name: function(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **changed)
    return batch
