"""What a module's step returns for the parts of a batch, joined for the hooks that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch
from rightbatch.integrations.lightning._hooks import examples_in, overrides

_OWN = ("lightning.", "pytorch_lightning.", "rightbatch.")


class PartOutputs:
    """Keeps the results of a batch's parts without their graphs, if `is_read`."""

    def __init__(self, *, is_read: bool) -> None:
        self._is_read = is_read
        self._parts: list[tuple[Any, float]] = []

    def reset(self) -> None:
        """Forget the parts of an attempt that failed, or of the batch before."""
        self._parts = []

    def add(self, output: Any, part: Batch) -> None:
        """Keep the result of one part."""
        if self._is_read:
            self._parts.append((_detached(output), examples_in(part)))

    def joined(self) -> Any:
        """Return the result for the whole batch; None if no hook reads it.

        Tensors and lists with an entry per example are joined, numbers are averaged over examples.
        """
        if not self._parts:
            return None
        outputs = [output for output, _ in self._parts]
        sizes = [size for _, size in self._parts]
        if not isinstance(outputs[0], Mapping):
            return _joined(outputs, sizes)
        found, left_out = Outputs(), set()
        for key in outputs[0]:
            try:
                found[key] = _joined([output[key] for output in outputs], sizes)
            except (KeyError, ValueError, RuntimeError):
                left_out.add(key)
        found.left_out = frozenset(left_out)
        return found


class Outputs(dict[Any, Any]):
    """A step's result by key; a key of `left_out` cannot be joined, and is refused when read."""

    left_out: frozenset[Any] = frozenset()

    def __missing__(self, key: Any) -> Any:
        if key not in self.left_out:
            raise KeyError(key)
        raise UsageError(
            f"the step's output {key!r} cannot be joined over the parts of a batch: return a "
            "tensor or a list with an entry per example, or a single number"
        )

    def copy(self) -> Outputs:
        """Return a copy that refuses the same keys, which Lightning passes to the hooks."""
        made = Outputs(self)
        made.left_out = self.left_out
        return made


def is_read(trainer: Any, module: Any, hook: str) -> bool:
    """Return whether a hook of the user's own gets the outputs of a step."""
    if overrides(module, hook):
        return True
    for callback in trainer.callbacks:
        for kind in type(callback).__mro__:
            if hook in vars(kind):
                if not kind.__module__.startswith(_OWN):
                    return True
                break
    return False


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {key: _detached(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_detached(each) for each in value)
    return value


def _joined(values: Sequence[Any], sizes: Sequence[float]) -> Any:
    """Join the values of parts of `sizes` examples.

    Raises:
        ValueError: for values that have no entry per example.
    """
    first = values[0]
    if len(values) == 1 or first is None:
        return first
    if isinstance(first, Mapping):
        return {key: _joined([value[key] for value in values], sizes) for key in first}
    if isinstance(first, Tensor | Real) and all(_is_number(value) for value in values):
        return sum(value * (n / sum(sizes)) for value, n in zip(values, sizes, strict=True))
    if isinstance(first, Tensor | list | tuple):
        if all(_length(value) == n for value, n in zip(values, sizes, strict=True)):
            if isinstance(first, Tensor):
                return torch.cat(list(values))
            return type(first)(each for value in values for each in value)
        if not isinstance(first, Tensor):
            return type(first)(_joined(each, sizes) for each in zip(*values, strict=True))
    raise ValueError(f"{type(first).__name__} has no entry per example")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0)


def _length(value: Any) -> int:
    return -1 if isinstance(value, Tensor) and not value.ndim else len(value)
