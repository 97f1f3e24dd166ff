"""Properties of a training that only its own process knows, for the advice of `tune`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from rightbatch._elastic import Exactness


@dataclass(frozen=True)
class TrainingFacts:
    """Properties of a loop's model, optimizer and loader.

    `betas` are those of `scaling.betas_of`, None for SGD. `gradient_bytes` is what
    distributed processes exchange per update. `precision` is None if the framework sets it.
    `parts_differ` is the relative difference between the gradients of a few examples in two parts
    and at once, 0 if it is rounding, and `parts_reason` its likely cause
    (`rightbatch.Exactness`).
    """

    optimizer: str
    betas: tuple[float, float] | None
    batch_norm: bool
    gradient_bytes: int
    workers: int
    drop_last: bool
    precision: str | None
    notes: tuple[str, ...] = ()
    parts_differ: float = 0.0
    parts_reason: str = ""


def facts_of(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    workers: int,
    drop_last: bool,
    precision: str | None,
    notes: tuple[str, ...] = (),
    exactness: Exactness | None = None,
) -> TrainingFacts:
    """Return the facts of a model and its optimizer; the keywords are properties of the loop."""
    from rightbatch._training.scaling import betas_of
    from rightbatch._workload.normalization import has_batch_norm

    differs = exactness is not None and not exactness.is_exact
    return TrainingFacts(
        optimizer=type(optimizer).__name__,
        betas=betas_of(optimizer),
        batch_norm=has_batch_norm(model),
        gradient_bytes=sum(p.nbytes for p in model.parameters() if p.requires_grad),
        workers=workers,
        drop_last=drop_last,
        precision=precision,
        notes=notes,
        parts_differ=exactness.difference if exactness is not None and differs else 0.0,
        parts_reason=exactness.reason if exactness is not None and differs else "",
    )
