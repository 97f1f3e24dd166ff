"""Modes that see every operator: a base class, and the tensors of an operator's call."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.ops.prim.device.default
"""The most frequent operator of fake tensors by far."""


class OperatorMode(TorchDispatchMode):
    """A mode whose `__torch_dispatch__` is called without the wrapper for compilation.

    Nothing is compiled here, and the wrapper costs more than the modes do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for leaf in tree:
            yield from tensors_in(leaf)
    elif isinstance(tree, dict):
        for leaf in tree.values():
            yield from tensors_in(leaf)


@cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Return position and name of the arguments that an operator writes."""
    if not isinstance(func, torch._ops.OpOverload):
        return ()
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def written_tensors(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Iterate over the tensors that a call of an operator writes."""
    for index, name in written_arguments(func):
        yield from tensors_in(args[index] if index < len(args) else kwargs.get(name))
