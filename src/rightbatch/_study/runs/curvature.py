"""How sharp the loss is along a run: the largest eigenvalue of its Hessian.

A step of SGD along an eigenvector of the Hessian with eigenvalue λ overshoots where λ · lr is above
2. That is a gauge of stability, with its sign. It does not tell how well a model generalizes
(Andriushchenko et al. 2023, arXiv 2302.07011).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._workload.batch import to_device
from rightbatch._errors import MissingExtraError
from rightbatch._training.loop import Loop
from rightbatch._device.random_state import random_state, set_random_state

EXAMPLES = 512
"""The same ones each time, so that the curve is of the weights and not of the sample."""
TOLERANCE = 0.02


class _Loss(nn.Module):
    """The loss as the model's own output, so that any batch and any loss will do."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Mapping[str, Any]) -> Tensor:
        return self.loss(self.model, x["batch"])


class _Same(nn.Module):
    reduction = "mean"

    def forward(self, loss: Tensor, nothing: Tensor) -> Tensor:
        return loss


def largest_eigenvalue(loop: Loop) -> float:
    """The algebraically largest one, on a fixed sample of the training data, in evaluation mode.

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
    model.eval()  # batch statistics and dropout would make it another function each time
    try:
        operator = HessianLinearOperator(
            _Loss(model, w.loss),
            _Same(),
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
        model.train()
        set_random_state(before, loop.device)
    return float(found[0]) if len(found) else float("nan")


@contextmanager
def _quiet() -> Iterator[None]:
    """linear_operator 0.6 and torch's own forward mode use what torch 2.14 deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _sample(loop: Loop) -> Iterator[tuple[dict[str, Any], Tensor]]:
    w = loop.workload
    data: Any = w.data
    size = loop.step.micro_batch_size or 1
    chosen = range(0, loop.examples, max(1, loop.examples // EXAMPLES))[:EXAMPLES]
    for start in range(0, len(chosen), size):
        cut = chosen[start : start + size]
        batch = w.collate([data[index] for index in cut])
        yield {"batch": to_device(batch, loop.device), "count": len(cut)}, torch.zeros(1)
