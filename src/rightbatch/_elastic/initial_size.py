"""The initial micro-batch, from the measured memory of forward and backward passes."""

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

MALLOC_OVERHEAD = 0.25
"""Share that glibc's malloc may hold beyond the tensors, as measured by benchmarks/fit.py."""


@dataclass(frozen=True)
class InitialSize:
    """The initial micro-batch size and the reason for it."""

    size: int
    reason: str


def find_initial_size(
    run: Callable[[int], object],
    optimizer: Optimizer,
    whole: int,
    *,
    device: torch.device,
    limit: int | None,
    margin: float,
) -> InitialSize:
    """Measure `run(n)`, a forward and backward pass of `n` examples, while doubling `n`.

    `whole` is the batch's number of examples, `limit` the bytes that a step may add to what the
    device holds now (all that is free if None), `margin` the share of them to leave free.
    """
    free = _free(device)
    room = int(min(free, limit or free) * (1 - margin)) - _optimizer_state_bytes(optimizer)
    if device.type == "cpu":
        room = int(room * (1 - MALLOC_OVERHEAD))
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
            least = 2  # BatchNorm cannot train on one example
    if not measured:
        return InitialSize(least, f"memory ran out while measuring a micro-batch of {least}")
    found = largest(measured, room, most)
    sizes = ", ".join(str(size) for size, _ in measured)
    return InitialSize(
        max(found, least),
        f"micro-batch {found} is the largest expected to fit into {format_bytes(max(room, 0))} "
        f"(measured at {sizes})",
    )


def _peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Return the peak bytes of `run` above what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return max(torch.cuda.max_memory_allocated(device) - before, 0)
    reader = open_device(device.type)  # without `prepare` it reads the whole process
    reader.reset_peak()
    before = reader.read().peak_bytes
    run()
    return max(reader.read().peak_bytes - before, 0)


def _free(device: torch.device) -> int:
    """Return the bytes available for new tensors."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + held
    return open_device(device.type).capacity()


def _optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes the optimizer allocates in its first step; assumes Adam's two moments."""
    if optimizer.state:
        return 0
    copies = 2
    if type(optimizer) is SGD:
        copies = int(any(group["momentum"] for group in optimizer.param_groups))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return copies * sum(int(parameter.nbytes) for parameter in parameters)
