"""The optimizer's side of an update: scaled backward pass, clipping, and the step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch._errors import UsageError


class OptimizerStep:
    """`backward`, `complete` and `step` of an update, with a `GradScaler` if there is one.

    `before_update` runs when the gradients are complete and unscaled, before they are clipped to
    the norm `clip_norm`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[nn.Parameter],
        *,
        scaler: torch.amp.GradScaler | None,
        clip_norm: float | None,
        before_update: Callable[[], object] | None,
    ) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._clip_norm = clip_norm
        self._before_update = before_update

    @property
    def has_completion(self) -> bool:
        """Whether `complete` does anything."""
        return bool(self._scaler or self._before_update or self._clip_norm is not None)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the scaled loss."""
        (self._scaler.scale(loss) if self._scaler is not None else loss).backward()

    def complete(self) -> Tensor | None:
        """Unscale and clip the complete gradients; return their norm if they are clipped."""
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        if self._before_update is not None:
            self._before_update()
        if self._clip_norm is None:
            return None
        return nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)

    def step(self) -> None:
        """Update the weights and the scaler."""
        with closures_refused(self._optimizer):
            if self._scaler is not None:
                self._scaler.step(self._optimizer)
                self._scaler.update()
            else:
                self._optimizer.step()

    def clear_gradients(self) -> None:
        """Remove all gradients, so that the attempt can be repeated."""
        for parameter in self._parameters:
            parameter.grad = None
        if self._scaler is not None:
            # A scaler raises if it unscales twice between two calls of `update`.
            self._scaler._per_optimizer_states.pop(id(self._optimizer), None)


@contextmanager
def closures_refused(optimizer: Optimizer) -> Iterator[None]:
    """Turn the error of a step without the closure that it asks for into a `UsageError`.

    LBFGS requires the argument; sharpness-aware optimizers declare `closure=None` and fail then.
    """
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if "closure" not in str(error).lower():
            raise
        raise UsageError(
            f"{type(optimizer).__name__}.step needs a closure, which computes the loss again; here "
            "a step computes it once. Measure the script that trains with it: "
            "`rightbatch fit -- python train.py --batch-size {batch}`"
        ) from error
