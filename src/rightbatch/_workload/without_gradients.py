"""Evaluation without gradients, also of models that differentiate in their forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MISSING = "does not require grad"


def needs_gradients(error: BaseException) -> bool:
    """Return whether an error says that gradients were not enabled where they were needed."""
    return not torch.is_grad_enabled() and _MISSING in str(error)


def without_gradients(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function without gradients, or with them if it computes gradients itself.

    Forces are gradients of an energy, and a gradient penalty is one of a loss: such a function
    fails without a graph.
    """
    try:
        with torch.no_grad():
            return function(*arguments)
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
    with torch.enable_grad():
        found = function(*arguments)
    return found.detach() if isinstance(found, Tensor) else found
