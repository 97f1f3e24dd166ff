"""The batches of a Transformers `Trainer`: what its losses average over, and parts of a batch."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from rightbatch._errors import UsageError
from rightbatch._workload.batch import count_examples, split_batch

IGNORED = -100
"""The label that losses leave out."""


class TrainerBatches:
    """Counts and splits a trainer's batches, which are mappings of a collator's making."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def items(self, inputs: Any) -> Tensor | None:
        """Return the number of labels that the loss averages over; None without labels.

        The first label of a row is no target of a causal language model.
        """
        if not isinstance(inputs, Mapping):
            return None
        labels = inputs.get("shift_labels", inputs.get("labels"))
        if not isinstance(labels, Tensor):
            return None
        shifts = getattr(self._trainer, "_loss_shifts_labels", False)
        if shifts and "shift_labels" not in inputs:
            labels = labels[..., 1:]
        return (labels != IGNORED).sum()

    def count(self, inputs: Any) -> float:
        """Return what the loss averages over: labels that are not ignored, or examples."""
        items = self.items(inputs)
        return self.examples(inputs) if items is None else float(items)

    def examples(self, inputs: Any) -> float:
        """Return the number of examples."""
        if not isinstance(inputs, Mapping):
            return float(count_examples(inputs))
        return float(self._rows(inputs))

    def split(self, inputs: Any, n: int) -> Sequence[Any]:
        """Cut a batch into parts of at most `n` examples.

        Tensors and lists with an entry per example are cut; other values are in every part.

        Raises:
            UsageError: for a tensor whose rows are not the examples, as in packed batches.
        """
        if not isinstance(inputs, Mapping):
            return split_batch(inputs, n)
        total = self._rows(inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.ndim and len(value) not in (1, total):
                raise UsageError(
                    f"cannot split {name!r} of shape {tuple(value.shape)} in a batch of {total} "
                    "examples: its first dimension is not the examples; pass split=, a function "
                    "of (batch, n)"
                )
        starts = range(0, total, n)
        return [_part(inputs, start, min(start + n, total), total) for start in starts]

    def _rows(self, inputs: Mapping[str, Any]) -> int:
        """Return the number of examples: the rows of the model's main input, or of all tensors."""
        main = getattr(getattr(self._trainer, "model", None), "main_input_name", "input_ids")
        for name in (main, "input_ids", "labels"):
            value = inputs.get(name)
            if isinstance(value, Tensor) and value.ndim:
                return len(value)
        lengths = [len(v) for v in inputs.values() if isinstance(v, Tensor) and v.ndim]
        return max(lengths) if lengths else count_examples(inputs)


def _part(value: Any, start: int, stop: int, total: int) -> Any:
    if isinstance(value, Mapping):
        return _like(value, {k: _part(inner, start, stop, total) for k, inner in value.items()})
    if isinstance(value, Tensor):
        return value[start:stop] if value.ndim and len(value) == total else value
    if isinstance(value, list | tuple) and len(value) == total:
        return value[start:stop]
    return value


def _like(mapping: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the same class with other items; a dict if none can be made."""
    if type(mapping) is dict:
        return items
    with suppress(Exception):  # any, of a class of one's own
        if isinstance(mapping, dict | UserDict):  # the copy of another may share its items
            made = copy.copy(mapping)
            made.update(items)
            return made
    with suppress(Exception):
        return type(mapping)(items)  # type: ignore[call-arg]
    return items


def copied(inputs: Any) -> Any:
    """Return a shallow copy, since `compute_loss` may take the labels out of its inputs."""
    if not isinstance(inputs, Mapping):
        return inputs
    return _part(inputs, 0, 0, -1)


def at_least_one(items: Tensor | None) -> Tensor | None:
    """Return the items, 1 where there are none: the loss of a batch without labels is then 0."""
    return None if items is None else torch.clamp(items, min=1)
