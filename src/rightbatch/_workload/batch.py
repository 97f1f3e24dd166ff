"""Batches: tensors in any nesting of tuples, lists, mappings, dataclasses and one's own classes.

Counts, splits and moves batches of unknown types. The number of examples is the leading dimension
that all tensors share. A list of images, or of mappings (a detector's targets), has one element per
example; where it stands, its length counts. If the tensors share no dimension, the length that all
top-level containers share is the number. For other batches the user passes `count=` and `split=`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rightbatch._errors import UsageError
from rightbatch._workload.leaf import bytes_of, examples_of, is_leaf, length_of
from rightbatch._workload.signature import accepts

Batch = Any


def count_examples(batch: Batch) -> int:
    """Return the number of examples in a batch.

    Raises:
        UsageError: if the number is ambiguous; pass `count=` (and `split=`) to the `Workload`.

    >>> count_examples({"image": torch.zeros(8, 3, 32, 32), "label": torch.zeros(8)})
    8
    """
    _refuse_examples_alone(batch)
    listed = _listed(batch)
    if listed is not None:
        return listed
    leading = _leading(batch)
    if len(leading) == 1:
        return leading.pop()
    lengths = {_length(part) for part in _parts(batch) if _has_length(part)}
    if len(lengths) == 1:
        return lengths.pop()
    found = f"tensors with leading dimensions {sorted(leading)}" if leading else "no tensors"
    raise UsageError(
        f"cannot determine the number of examples in a batch of type {type(batch).__name__} "
        f"({found}); pass count=, a function of the batch, and split=, a function of (batch, n), "
        "to Workload"
    )


def split_batch(batch: Batch, n: int) -> Sequence[Batch]:
    """Split a batch into parts of at most `n` examples, in order; dense tensors are not copied.

    Scalars, strings and None are in every part. A list with one element per example is split like
    a tensor.

    Raises:
        UsageError: if the number of examples is ambiguous, or a tensor's first dimension is not
            the examples; pass `split=`.
    """
    if n < 1:
        raise UsageError(f"a part has at least 1 example, got {n}")
    total = count_examples(batch)
    shared = _listed(batch) is None and _leading(batch) == {total}

    def cut(part: Any, start: int, stop: int) -> Any:
        if is_leaf(part):
            return _slice(part, total, shared, start, stop)
        # A batch is made of fields, even where it has as many fields as examples.
        return _rebuild(part, lambda inner: _slice(inner, total, shared, start, stop))

    return [cut(batch, start, min(start + n, total)) for start in range(0, total, n)]


def to_device(batch: Batch, device: str | torch.device) -> Batch:
    """Move every tensor to `device`; tensors that are already there are not copied.

    A batch of one's own class with a method `to` is moved by it, as in a training loop.
    """
    move = getattr(batch, "to", None)
    if callable(move) and not is_leaf(batch) and not _is_nesting(batch):
        if accepts(move, "non_blocking", unknown=False):
            return move(device, non_blocking=True)
        return move(device)
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, PackedSequence):
        return cast(Any, batch).to(device, non_blocking=True)
    return _rebuild(batch, lambda part: to_device(part, device))


def batch_bytes(batch: Batch) -> int:
    """Return the bytes of the batch's tensors."""
    return sum(map(bytes_of, tensors(batch)))


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
    if is_leaf(part):
        length = length_of(part)
        if length is None:
            return part
        if length == total:
            return examples_of(part, start, stop)
        shape = tuple(part.shape) if isinstance(part, Tensor) else (length,)
        raise UsageError(
            f"cannot split a tensor of shape {shape} in a batch of {total} examples: "
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
    if not _is_sequence(part) or len(part) != total:
        return False
    return not (shared and any(_has_length(x) and _length(x) == total for x in part))


def _refuse_examples_alone(batch: Batch) -> None:
    """Refuse a list of whole examples, as a collate that does nothing returns it.

    A list of one or two fields looks the same: images of three channels are no batch of three.
    """
    if not _is_sequence(batch) or not batch:
        return
    channels = {len(part) for part in batch} if _are_images(batch) else set()
    alike = {tuple(part) for part in batch} if _are_mappings(batch) else set()
    if 3 in channels or (channels and len(batch) > 2) or (len(alike) == 1 and len(batch) > 1):
        raise UsageError(
            "the batch looks like a list of whole examples, which is not told from a list of "
            "fields; pass count=len and "
            "split=lambda batch, n: [batch[i : i + n] for i in range(0, len(batch), n)] to "
            "Workload, or let the collate return fields"
        )


def _listed(batch: Batch) -> int | None:
    """Return the length that all lists of images and of mappings in a batch share.

    None if there is no such list, or if a tensor beside them contradicts it.
    """
    lists, beside = _lists_of_examples(batch, inside=False)
    with_mappings = any(_are_mappings(found) for found in lists)
    if not with_mappings and not any(len({x.shape for x in found}) > 1 for found in lists):
        return None  # tensors of one shape may as well be a model's inputs
    lengths = {len(found) for found in lists} | beside
    return lengths.pop() if len(lengths) == 1 else None


def _lists_of_examples(part: Any, *, inside: bool) -> tuple[list[Sequence[Any]], set[int]]:
    """Return the lists of images and of mappings in a batch, and the other leaves' lengths."""
    if is_leaf(part):
        length = length_of(part)
        return [], set() if length is None else {length}
    if inside and _is_sequence(part) and part and (_are_images(part) or _are_mappings(part)):
        return [part], set()
    found = [_lists_of_examples(inner, inside=True) for inner in _parts(part)]
    return [each for lists, _ in found for each in lists], {n for _, ns in found for n in ns}


def _are_images(parts: Sequence[Any]) -> bool:
    """Return whether the elements are (channels, height, width) of 1, 3 or 4 channels."""
    return all(isinstance(p, Tensor) and p.ndim == 3 and len(p) in (1, 3, 4) for p in parts) and (
        len({len(p) for p in parts}) == 1
    )


def _are_mappings(parts: Sequence[Any]) -> bool:
    return all(isinstance(part, Mapping) for part in parts)


def _leading(batch: Batch) -> set[int]:
    if is_leaf(batch):
        length = length_of(batch)
        return set() if length is None else {length}
    return {length for part in _parts(batch) for length in _leading(part)}


def _parts(batch: Batch) -> Sequence[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return batch
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    return list(_attributes(batch).values())


def _attributes(batch: Batch) -> dict[str, Any]:
    """Return the attributes that hold tensors, of an object of one's own class."""
    own = _own_attributes(batch)
    return {name: value for name, value in own.items() if _holds_tensors(value, 3)}


def _own_attributes(value: Any) -> dict[str, Any]:
    own, slots = getattr(value, "__dict__", None), _slots(type(value))  # type: ignore[arg-type]
    if not slots and not isinstance(own, dict):
        return {}
    if isinstance(value, type | nn.Module) or callable(value):
        return {}
    found = own if isinstance(own, dict) else {}
    return found | {name: getattr(value, name) for name in slots if hasattr(value, name)}


@cache
def _slots(kind: type) -> tuple[str, ...]:
    """Return the attributes that instances have instead of a `__dict__`, as those of attrs do."""
    found: list[str] = []
    for each in kind.__mro__:
        declared = vars(each).get("__slots__", ())
        names = (declared,) if isinstance(declared, str) else tuple(declared)
        private = f"_{each.__name__.lstrip('_')}"
        found += [f"{private}{n}" if n.startswith("__") else n for n in names]
    return tuple(n for n in found if not n.endswith("__"))


def _holds_tensors(value: Any, depth: int) -> bool:
    """Return whether there are tensors in an attribute, `depth` containers down at most."""
    if is_leaf(value):
        return True
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(_holds_tensors(inner, depth - 1) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensors(inner, depth - 1) for inner in value)
    return any(_holds_tensors(inner, depth - 1) for inner in _own_attributes(value).values())


def _has_length(part: Any) -> bool:
    if is_leaf(part):
        return length_of(part) is not None
    return isinstance(part, list | tuple)


def _length(part: Any) -> int:
    return (length_of(part) or 0) if is_leaf(part) else len(part)


def _is_sequence(part: Any) -> bool:
    return isinstance(part, list | tuple) and not hasattr(part, "_fields")


def _is_nesting(part: Any) -> bool:
    """Return whether a part is a container whose tensors are known without its class."""
    return isinstance(part, Mapping | list | tuple) or dataclasses.is_dataclass(part)


def _mapping_like(batch: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return a mapping of the batch's class, with its attributes, and with other values."""
    try:
        made: Any = copy.copy(batch)
        made.update(items)
        return cast("Mapping[Any, Any]", made)
    except Exception:  # one that does not change, or checks its values
        pass
    try:
        return cast(Any, type(batch))(items)  # type: ignore[no-any-return]
    except TypeError:
        return items


def _rebuild(batch: Batch, function: Callable[[Any], Any]) -> Batch:
    if isinstance(batch, Mapping):
        rebuilt = {key: function(value) for key, value in batch.items()}
        return rebuilt if type(batch) is dict else _mapping_like(batch, rebuilt)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(function(part) for part in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(function(part) for part in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        attributes = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    else:
        attributes = _attributes(batch)
    if attributes:
        made = copy.copy(batch)
        for name, value in attributes.items():  # also those of a frozen class
            object.__setattr__(made, name, function(value))
        return made
    return batch
