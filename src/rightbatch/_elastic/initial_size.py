"""The micro-batch to begin with, found by measuring forward and backward passes of a few sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import SGD, Optimizer

from rightbatch._device import is_out_of_memory, open_device
from rightbatch._device.caches import release
from rightbatch._elastic.size_policy import largest, next_trial
from rightbatch._units import format_bytes

HELD_SHARE = 0.25
"""What glibc's malloc may hold beyond what tensors need, as measured by benchmarks/fit.py."""


@dataclass(frozen=True)
class Start:
    """The size to begin with, and why."""

    size: int
    reason: str


def find(
    run: Callable[[int], object],
    optimizer: Optimizer,
    whole: int,
    *,
    device: torch.device,
    limit: int | None,
    margin: float,
) -> Start:
    """Measure `run(n)`, a forward and a backward pass of `n` examples, for doubling `n`.

    `whole` is the number of examples there are, `limit` the bytes that a step may add to what the
    device holds now; by default all that is free.
    """
    free = _free(device)
    room = int(min(free, limit or free) * (1 - margin)) - _state_to_come(optimizer)
    if device.type == "cpu":
        room = int(room * (1 - HELD_SHARE))
    measured: list[tuple[int, int]] = []
    least, most = 1, whole
    while size := next_trial(measured, room, most, least):
        try:
            measured.append((size, _peak_of(partial(run, size), device)))
        except BaseException as error:
            if is_out_of_memory(error):
                most = max(size // 2, 1)
                release(device)
                break
            if size > 1 or whole == 1:
                raise
            least = 2  # BatchNorm cannot be trained on one example
    if not measured:
        return Start(least, f"not even {least} examples could be measured")
    found = largest(measured, room, most)
    sizes = ", ".join(str(size) for size, _ in measured)
    return Start(
        max(found, least),
        f"a micro-batch of {found} needs at most the {format_bytes(max(room, 0))} that are free "
        f"for it (measured at {sizes})",
    )


def _peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Bytes that `run` needed at once beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    reader = open_device(device.type)  # not prepared, it reads what the process has in all
    reader.reset_peak()
    before = reader.read().peak_bytes
    run()
    return max(reader.read().peak_bytes - before, 0)


def _free(device: torch.device) -> int:
    """Bytes that tensors may take in addition to those that are there."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    return open_device(device.type).capacity()


def _state_to_come(optimizer: Optimizer) -> int:
    """What the optimizer will allocate in its first step: two values a parameter, as Adam does."""
    if optimizer.state:
        return 0
    copies = 2
    if type(optimizer) is SGD:
        copies = int(any(group["momentum"] for group in optimizer.param_groups))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return copies * sum(int(parameter.nbytes) for parameter in parameters)
