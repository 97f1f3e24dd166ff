"""Hooks on parameters (`register_hook`) are called once, with the gradient of the whole batch.

A hook may clip, mask or add noise. In the backward pass of a part it would be called with the
part's share, and clipping the shares is not clipping their sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


class GradientHooks:
    """The hooks of parameters; `postponed` keeps them from backward passes, `apply` calls them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Remove the hooks inside the context."""
        kept = [(p, p._backward_hooks) for p in self._parameters if p._backward_hooks]
        for parameter, _ in kept:
            parameter._backward_hooks = None
        try:
            yield
        finally:
            for parameter, hooks in kept:
                parameter._backward_hooks = hooks

    @property
    def exist(self) -> bool:
        return any(parameter._backward_hooks for parameter in self._parameters)

    def apply(self) -> None:
        """Call the hooks with the gradients, and replace these by what they return."""
        for parameter in self._parameters:
            hooks: Any = parameter._backward_hooks
            for hook in list(hooks.values()) if hooks else ():
                if parameter.grad is not None:
                    changed = hook(parameter.grad)
                    parameter.grad = parameter.grad if changed is None else changed
