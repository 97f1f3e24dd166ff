"""Check on a few examples that the gradients of parts add up to the whole batch's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state
from rightbatch._elastic.gradient_hooks import GradientHooks
from rightbatch._workload.batch import Batch
from rightbatch._workload.normalization import has_batch_norm

EXAMPLES, MIN_EXAMPLES = 8, 4
"""Examples compared; each half needs at least two, for BatchNorm."""
_DROPOUTS = nn.modules.dropout._DropoutNd


@dataclass(frozen=True)
class Exactness:
    """Whether accumulating gradients over parts equals one pass over the whole batch.

    `difference` is |g_parts - g_whole| / |g_whole| over `examples`, split in two. Above
    `tolerance`, the largest effect of rounding, the two differ, and `reason` names the likely
    cause.
    """

    difference: float
    tolerance: float
    examples: int
    reason: str

    @property
    def is_exact(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        if self.is_exact:
            return f"exact: gradients of parts differ by {self.difference:.1g}, which is rounding"
        return f"inexact: gradients of parts differ by {self.difference:.2g}: {self.reason}"


def compare_gradients(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    batch: Batch,
    split: Callable[[Batch, int], Any],
    count: Callable[[Batch], float],
    device: torch.device,
    restore: Callable[[], object] = lambda: None,
) -> Exactness | None:
    """Compare the gradients of a small batch, at once and in two parts, with dropout disabled.

    Returns None for fewer than `MIN_EXAMPLES` examples, or if the loss draws random numbers even
    without dropout, because parts then draw different ones. `restore` undoes what a pass changes
    besides gradients. Leaves no gradients.
    """
    number = len(split(batch, 1))
    if number < MIN_EXAMPLES:
        return None
    parts = split(batch, -(-number // 2))
    with _without_dropout(model):
        before = random_state(device)
        whole = _gradients(model, loss, [batch], count)
        if not _is_same_state(before, random_state(device)):
            return None
        restore()
        pieces = _gradients(model, loss, parts, count)
    total = sum(float(g.double().square().sum()) for g in whole if g is not None)
    squared = sum(
        float((_or_zero(a, b).double() - _or_zero(b, a).double()).square().sum())
        for a, b in zip(whole, pieces, strict=True)
        if a is not None or b is not None
    )
    difference = (squared / total) ** 0.5 if total > 0 else float(squared > 0)
    tolerance = _tolerance(model)
    reason = "" if difference <= tolerance else _likely_cause(model)
    return Exactness(difference, tolerance, number, reason)


def _gradients(
    model: nn.Module,
    loss: Callable[[nn.Module, Batch], Tensor],
    parts: Any,
    count: Callable[[Batch], float],
) -> list[Tensor | None]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    hooks = GradientHooks(parameters)
    _clear(parameters)
    counts = [count(part) for part in parts]
    for part, n in zip(parts, counts, strict=True):
        if n > 0:
            weighted = loss(model, part) * (n / sum(counts))
            with hooks.postponed():
                weighted.backward()
    found = [p.grad for p in parameters]
    _clear(parameters)
    return found


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _is_same_state(before: dict[str, Any], after: dict[str, Any]) -> bool:
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
    for module, _ in rates:  # attention and recurrent layers have a rate instead of a module
        module.dropout = 0.0
    try:
        yield
    finally:
        for module in dropouts:
            module.training = True
        for module, rate in rates:
            module.dropout = rate


def _tolerance(model: nn.Module) -> float:
    """Return the largest effect of summing in another order: about √(machine epsilon)."""
    dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
    if dtypes == {torch.float64}:
        return 1e-8
    low = torch.is_autocast_enabled() or bool(dtypes - {torch.float32, torch.float64})
    return 0.05 if low else 1e-3


def _likely_cause(model: nn.Module) -> str:
    if has_batch_norm(model):
        return (
            "BatchNorm normalizes over the micro-batch instead of the batch; GroupNorm and "
            "LayerNorm do not depend on the batch"
        )
    return (
        "the loss is not a mean over count(batch): pass count=. If it is, the loss compares "
        "examples with each other (contrastive losses), divides by a sum over the batch "
        "(detection), or is computed at a lower precision; or the model keeps a state from one "
        "call to the next (a hidden state)"
    )
