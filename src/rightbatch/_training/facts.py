"""What only the process that holds a training can tell of it, and advice depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class TrainingFacts:
    """Of a loop's model, optimizer and loading.

    `betas` are those of Adam and its kin, None for others. `gradient_bytes` is what processes that
    train together exchange at every update. `precision` is None where a framework has its own.
    """

    optimizer: str
    betas: tuple[float, float] | None
    batch_norm: bool
    gradient_bytes: int
    workers: int
    drop_last: bool
    precision: str | None
    notes: tuple[str, ...] = ()


def facts_of(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    workers: int,
    drop_last: bool,
    precision: str | None,
    notes: tuple[str, ...] = (),
) -> TrainingFacts:
    """Return the facts of a model and its optimizer, with what the loop knows beside them."""
    from rightbatch._workload.normalization import has_batch_norm

    betas = optimizer.defaults.get("betas")
    return TrainingFacts(
        optimizer=type(optimizer).__name__,
        betas=tuple(betas) if betas else None,
        batch_norm=has_batch_norm(model),
        gradient_bytes=sum(p.nbytes for p in model.parameters() if p.requires_grad),
        workers=workers,
        drop_last=drop_last,
        precision=precision,
        notes=notes,
    )
