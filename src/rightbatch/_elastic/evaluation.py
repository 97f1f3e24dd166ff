"""Evaluation of a batch in parts; a part in which memory runs out is split in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rightbatch import _faults
from rightbatch._device.caches import release
from rightbatch._elastic.gradients import Failure, failure_from, nothing_fits
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.without_gradients import without_gradients


def evaluate_parts(
    model: nn.Module,
    parts: Sequence[Batch],
    function: Callable[[nn.Module, Batch], Any],
    *,
    count: Callable[[Batch], float],
    split: Callable[[Batch, int], Sequence[Batch]],
    device: torch.device,
    on_failure: Callable[[Failure, int], object],
) -> list[tuple[Any, float]]:
    """Return `function(model, part)` and `count(part)` for each part, without gradients.

    `on_failure(failure, size)` is called with the size tried next.

    Raises:
        NothingFitsError: if memory runs out at one example.
    """
    pending = list(parts)
    results: list[tuple[Any, float]] = []
    while pending:
        result = _evaluate(model, pending[0], function, count, device)
        if not isinstance(result, Failure):
            results.append(result)
            pending.pop(0)
            continue
        release(device)
        size = len(split(pending[0], 1))
        if size == 1:
            raise nothing_fits(result, size)
        half = -(-size // 2)
        pending[:1] = split(pending[0], half)
        on_failure(result, half)
    return results


def _evaluate(
    model: nn.Module,
    part: Batch,
    function: Callable[[nn.Module, Batch], Any],
    count: Callable[[Batch], float],
    device: torch.device,
) -> tuple[Any, float] | Failure:
    try:
        _faults.enter("evaluation")
        batch = to_device(part, device)
        return without_gradients(function, model, batch), float(count(batch))
    except BaseException as error:
        return failure_from(error, "evaluation")
