"""Hooks on parameters (`register_hook`) are called once, with the gradient of the whole batch.

A hook may clip, mask or add noise. In the backward pass of a part it would be called with the
part's share, and clipping the shares is not clipping their sum.
"""

from __future__ import annotations

from collections import OrderedDict
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
        """Remove the hooks inside the context, except those that measure the parts."""
        kept = [(p, p._backward_hooks) for p in self._parameters if _changing(p)]
        for parameter, hooks in kept:
            all_hooks: Any = hooks
            measuring = {key: hook for key, hook in all_hooks.items() if _is_measuring(hook)}
            parameter._backward_hooks = OrderedDict(measuring) if measuring else None
        try:
            yield
        finally:
            for parameter, hooks in kept:
                parameter._backward_hooks = hooks

    @property
    def exist(self) -> bool:
        return any(_changing(parameter) for parameter in self._parameters)

    def apply(self) -> None:
        """Call the hooks with the gradients, and replace these by what they return."""
        for parameter in self._parameters:
            for hook in _changing(parameter):
                if parameter.grad is not None:
                    changed = hook(parameter.grad)
                    parameter.grad = parameter.grad if changed is None else changed


def _changing(parameter: nn.Parameter) -> list[Any]:
    """Return the hooks that may change the gradient."""
    hooks: Any = parameter._backward_hooks
    return [hook for hook in hooks.values() if not _is_measuring(hook)] if hooks else []


def _is_measuring(hook: Any) -> bool:
    """Return whether a hook is one of ours, which observes the gradient of each part."""
    return str(getattr(hook, "__module__", "")).startswith(("rightbatch.", "_rightbatch_agent"))
