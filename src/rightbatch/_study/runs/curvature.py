"""The sharpness of the loss along a run: the largest eigenvalue of its Hessian.

A step of SGD along an eigenvector of the Hessian with eigenvalue λ is unstable if λ · lr is over 2.
The sharpness does not predict how well a model generalizes (Andriushchenko et al. 2023, arXiv
2302.07011).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state, set_random_state
from rightbatch._errors import MissingExtraError
from rightbatch._training.loop import WorkloadLoop
from rightbatch._workload.batch import to_device
from rightbatch._workload.modes import set_training
from rightbatch._workload.order import training_indices

EXAMPLES = 512
"""Size of the sample, which is the same each time, so that only the weights change the curve."""
TOLERANCE = 0.02
"""Relative accuracy of the eigenvalue."""


class _Loss(nn.Module):
    """A model whose output is the loss, so that any batch and any loss can be used."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Mapping[str, Any]) -> Tensor:
        return self.loss(self.model, x["batch"])


class _Identity(nn.Module):
    """A loss function that returns the model's output."""

    reduction = "mean"

    def forward(self, loss: Tensor, nothing: Tensor) -> Tensor:
        return loss


def largest_eigenvalue(loop: WorkloadLoop) -> float:
    """Return the algebraically largest eigenvalue of the Hessian; NaN if Lanczos does not converge.

    Uses a fixed sample of the training data and evaluation mode; restores the random states.

    Raises:
        MissingExtraError: without curvlinops.
    """
    try:
        with _quiet():
            from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import ArpackNoConvergence, eigsh
    except ImportError:
        raise MissingExtraError("curvlinops-for-pytorch", "study") from None

    w, model = loop.workload, loop.model
    before = random_state(loop.device)
    set_training(model, False)  # batch statistics and dropout would change the function each time
    try:
        operator = HessianLinearOperator(
            _Loss(model, w.loss),
            _Identity(),
            [p for p in model.parameters() if p.requires_grad],
            list(_sample(loop)),
            check_deterministic=False,
            batch_size_fn=lambda x: x["count"],
        )
        with _quiet():
            found = eigsh(operator.to_scipy(), k=1, which="LA", tol=TOLERANCE)[0]
    except ArpackNoConvergence as unfinished:
        found = unfinished.eigenvalues
    finally:
        set_training(model, True)
        set_random_state(before, loop.device)
    return float(found[0]) if len(found) else float("nan")


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore FutureWarnings: linear_operator 0.6 and torch use what torch 2.14 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _sample(loop: WorkloadLoop) -> Iterator[tuple[dict[str, Any], Tensor]]:
    w = loop.workload
    data: Any = w.data
    size = loop.micro_batch_size or 1
    indices = training_indices(w, loop.plan.seed)
    chosen = indices[:: max(1, len(indices) // EXAMPLES)][:EXAMPLES]
    for start in range(0, len(chosen), size):
        cut = chosen[start : start + size]
        batch = w.collate([data[index] for index in cut])
        if batch is None:
            continue
        yield {"batch": to_device(batch, loop.device), "count": len(cut)}, torch.zeros(1)
