"""What a batch is: tensors in any nesting of tuples, lists, mappings and dataclasses.

Three questions are asked of a batch whose type is unknown: how many examples it holds, how to cut
it into parts, and how to move it. The rule for the first: the leading dimension that all tensors
share is the number of examples; where they share none (detection targets, say), the length that
all top-level containers share. Where that is no answer either, the user says it: `count=`,
`split=`.
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
    """The number of examples in a batch.

    Raises:
        UsageError: if the batch does not say; pass `count=` (and `split=`) to the `Workload`.

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
        f"cannot tell how many examples a batch of type {type(batch).__name__} holds ({found}); "
        "pass count=, a function of the batch, and split=, a function of (batch, n), to Workload"
    )


def split_batch(batch: Batch, n: int) -> Sequence[Batch]:
    """Parts of at most `n` examples, in order; views of the batch's tensors, no copies.

    Scalars, strings and None belong to every part. A list with one element per example is cut
    like a tensor.

    Raises:
        UsageError: if the batch does not say how many examples it holds, or holds a tensor that
            belongs to no example; pass `split=`.
    """
    if n < 1:
        raise UsageError(f"parts hold at least 1 example, not {n}")
    total = count_examples(batch)
    shared = _leading(batch) == {total}

    def cut(part: Any, start: int, stop: int) -> Any:
        if isinstance(part, Tensor):
            return _slice(part, total, shared, start, stop)
        # A batch is made of fields, even where it has as many fields as examples.
        return _rebuild(part, lambda inner: _slice(inner, total, shared, start, stop))

    return [cut(batch, start, min(start + n, total)) for start in range(0, total, n)]


def to_device(batch: Batch, device: str | torch.device) -> Batch:
    """The batch with every tensor on `device`; what is there already is not copied."""
    return map_tensors(batch, lambda leaf: leaf.to(device, non_blocking=True))


def batch_bytes(batch: Batch) -> int:
    """Bytes that the batch's tensors occupy."""
    return sum(leaf.nbytes for leaf in tensors(batch))


def tensors(batch: Batch) -> Iterator[Tensor]:
    """Every tensor in the nesting."""
    if isinstance(batch, Tensor):
        yield batch
    else:
        for part in _parts(batch):
            yield from tensors(part)


def map_tensors(batch: Batch, function: Callable[[Tensor], Any]) -> Batch:
    """The same nesting, with `function` applied to every tensor."""
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
            f"a tensor of shape {tuple(part.shape)} in a batch of {total} examples belongs to no "
            "example; pass split=, a function of (batch, n), to Workload"
        )
    if _is_per_example(part, total, shared):
        return part[start:stop]
    return _rebuild(part, lambda inner: _slice(inner, total, shared, start, stop))


def _is_per_example(part: Any, total: int, shared: bool) -> bool:
    """Whether a list inside a batch holds one element per example, rather than one per field.

    Where all tensors share their leading dimension, an element as long as the batch is a field.
    """
    if not isinstance(part, list | tuple) or len(part) != total or _is_named(part):
        return False
    return not (shared and any(_has_length(x) and len(x) == total for x in part))


def _refuse_packed(batch: Batch) -> None:
    if isinstance(batch, PackedSequence):
        raise UsageError(
            "a PackedSequence cannot be counted or cut by itself; pass count= and split= to "
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
        try:  # transformers' BatchEncoding and its like are made from a dict
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
