"""The examples that a workload's `order` draws."""

from __future__ import annotations

from collections.abc import Sequence

from rightbatch._workload.workload import Workload

EPOCHS = 8
"""Epochs whose draws are joined: a weighted sampler draws a rare example in few of them."""


def epoch_length(workload: Workload, seed: int) -> int:
    """Return the number of examples in an epoch.

    Raises:
        TypeError: if the data has no length.
    """
    if workload.order is not None:
        return len(workload.order(seed, 0))
    return len(workload.data)  # type: ignore[arg-type]


def drawn_indices(workload: Workload, seed: int) -> Sequence[int] | None:
    """Return the indices that the order draws in some epochs, ascending; None if it draws all."""
    if workload.order is None:
        return None
    return _drawn(workload, seed)


def training_indices(workload: Workload, seed: int) -> Sequence[int]:
    """Return the indices that are trained on, ascending.

    Raises:
        TypeError: if the data has no length.
    """
    if workload.order is not None:
        return _drawn(workload, seed)
    return range(len(workload.data))  # type: ignore[arg-type]


def _drawn(workload: Workload, seed: int) -> Sequence[int]:
    assert workload.order is not None
    examples = len(workload.data)  # type: ignore[arg-type]
    drawn: set[int] = set()
    for epoch in range(EPOCHS):
        before = len(drawn)
        drawn.update(workload.order(seed, epoch))
        if len(drawn) in (before, examples):
            break
    return sorted(drawn)
