"""What a loss function must take and return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._errors import UsageError


def scalar_loss(value: Any) -> Tensor:
    """Return what a loss function has returned as a tensor of no dimensions.

    Raises:
        UsageError: if it is not a tensor of one element, or, where gradients are enabled, has none.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise UsageError(
            f"loss(model, batch) returns a scalar tensor, not {type(value).__name__}{shape}; "
            "return the entry or the mean that is minimized"
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise UsageError(
            "loss(model, batch) returns a tensor without a gradient: it is detached, or computed "
            "under no_grad or from parameters that are all frozen"
        )
    return value.squeeze() if value.ndim else value


def check_loss(loss: Callable[..., Any]) -> None:
    """Check that a loss function takes the model and a batch, not outputs and targets.

    Raises:
        UsageError: for a criterion of torch.
    """
    name = getattr(loss, "__name__", type(loss).__name__)
    if isinstance(loss, nn.modules.loss._Loss) or getattr(nn.functional, name, None) is loss:
        raise UsageError(
            f"the loss is a function of (model, batch), and {name} is one of outputs and targets; "
            "for batches (inputs, targets) pass "
            "loss=lambda model, batch: criterion(model(batch[0]), batch[1])"
        )


def with_scalar_result(
    loss: Callable[[nn.Module, Any], Any],
) -> Callable[[nn.Module, Any], Tensor]:
    """Return a loss function whose results are those of `scalar_loss`."""
    return lambda model, batch: scalar_loss(loss(model, batch))
