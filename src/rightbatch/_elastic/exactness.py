"""Whether the parts' gradients add up to the whole batch's, found out on a few examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state
from rightbatch._workload.batch import Batch
from rightbatch._workload.normalization import has_batch_norm

EXAMPLES, FEWEST = 8, 4
"""How many examples are compared; each half has two at least, as BatchNorm needs."""
_DROPOUTS = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Exactness:
    """`difference` is |g_parts - g_whole| / |g_whole| over `examples`, cut in two.

    Above `tolerance`, which is what rounding may do, training in parts is not training on the
    whole, and `reason` names what is known to cause it.
    """

    difference: float
    tolerance: float
    examples: int
    reason: str

    @property
    def is_exact(self) -> bool:
        return self.difference <= self.tolerance


def compare(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batch: Batch,
    split: Callable[[Batch, int], Any],
    count: Callable[[Batch], float],
    device: torch.device,
) -> Exactness | None:
    """Gradients of a batch of a few examples, at once and in two parts.

    None where one cannot be cut, or where the loss draws random numbers even without dropout
    (which is off meanwhile): parts draw others. Leaves no gradients.
    """
    number = len(split(batch, 1))
    if number < FEWEST:
        return None
    parts = split(batch, -(-number // 2))
    with _without_dropout(model):
        before = random_state(device)
        whole = _gradients(model, loss, [batch], count)
        if not _same(before, random_state(device)):
            return None
        pieces = _gradients(model, loss, parts, count)
    total = sum(float(g.double().square().sum()) for g in whole if g is not None)
    apart = sum(
        float((_or_zero(a, b).double() - _or_zero(b, a).double()).square().sum())
        for a, b in zip(whole, pieces, strict=True)
        if a is not None or b is not None
    )
    difference = (apart / total) ** 0.5 if total > 0 else float(apart > 0)
    tolerance = _tolerance(model)
    reason = "" if difference <= tolerance else _why(model)
    return Exactness(difference, tolerance, number, reason)


def _gradients(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    parts: Any,
    count: Callable[[Batch], float],
) -> list[Tensor | None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    _clear(parameters)
    counts = [count(part) for part in parts]
    for part, n in zip(parts, counts, strict=True):
        if n > 0:
            (loss(model, part) * (n / sum(counts))).backward()
    found = [p.grad for p in parameters]
    _clear(parameters)
    return found


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    kinds = ("torch", "device")
    return all(torch.equal(before[kind], after[kind]) for kind in kinds if kind in before)


def _or_zero(one: Tensor | None, other: Tensor | None) -> Tensor:
    if one is not None:
        return one.to_dense() if one.is_sparse else one
    assert other is not None
    return torch.zeros_like(other.to_dense() if other.is_sparse else other)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    dropouts: list[nn.Module] = [
        m for m in model.modules() if isinstance(m, _DROPOUTS) and m.training
    ]
    rates: list[tuple[Any, Any]] = [
        (module, module.dropout)
        for module in model.modules()
        if isinstance(getattr(module, "dropout", None), float)
    ]
    for module in dropouts:
        module.training = False
    for module, _ in rates:  # attention and recurrent layers keep theirs as a number
        module.dropout = 0.0
    try:
        yield
    finally:
        for module in dropouts:
            module.training = True
        for module, rate in rates:
            module.dropout = rate


def _tolerance(model: nn.Module) -> float:
    """Rounding of sums in another order: about the square root of the precision, at most."""
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if dtypes == {torch.float64}:
        return 1e-8
    low = torch.is_autocast_enabled() or bool(dtypes - {torch.float32, torch.float64})
    return 0.05 if low else 1e-3


def _why(model: nn.Module) -> str:
    if has_batch_norm(model):
        return (
            "BatchNorm normalizes over the micro-batch, not over the batch; GroupNorm or LayerNorm "
            "do not depend on it"
        )
    return (
        "the loss is not a mean over count(batch): pass count=, or mind that it compares examples "
        "with each other (contrastive losses), divides by a sum over the batch (detection), or is "
        "computed at a lower precision"
    )
