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
from rightbatch._workload.sizes import TRIED, Sizes

MALLOC_OVERHEAD = 0.25
"""Share that glibc's malloc may hold beyond the tensors, as measured by benchmarks/fit.py."""


@dataclass(frozen=True)
class InitialSize:
    """The initial micro-batch size, the reason for it, and the number it is a multiple of."""

    size: int
    reason: str
    multiple: int = 1


def find_initial_size(
    run: Callable[[int], object],
    optimizer: Optimizer,
    whole: int,
    *,
    device: torch.device,
    limit: int | None,
    margin: float,
    least: int = 1,
) -> InitialSize:
    """Measure `run(n)`, a forward and backward pass of `n` examples, while doubling `n`.

    `whole` is the batch's number of examples, `limit` the bytes that a step may add to the memory
    in use now (all free memory if None), `margin` the share of them to leave free. `least` is the
    smallest size that the model takes.

    A first size may fail with an error other than out-of-memory, as in a loss over pairs. Then the
    sizes of `TRIED` and `whole` are tried in this order, without those below `least`, those above
    `whole`, and those that failed before. Doubling continues from the first that runs, and the
    result is a multiple of it.

    Raises:
        Exception: the error of `run`, if every size tried fails, or if one fails after another one
            ran.
    """
    free = _free(device)
    room = int(min(free, limit or free) * (1 - margin)) - _optimizer_state_bytes(optimizer)
    if device.type == "cpu":
        room = int(room * (1 - MALLOC_OVERHEAD))
    measured: list[tuple[int, int]] = []
    first, most = least, whole
    rejected: set[int] = set()
    while size := next_trial(measured, room, most, first):
        try:
            measured.append((size, _peak_of(partial(run, size), device)))
        except BaseException as error:
            if is_out_of_memory(error):
                most = max(size // 2, 1)
                release(device)
                break
            rejected.add(size)
            untried = [n for n in (*TRIED, whole) if least <= n <= whole and n not in rejected]
            if not untried or measured:
                raise
            first = untried[0]
    multiple = first if rejected else 1
    if not measured:
        reason = f"memory ran out while measuring a micro-batch of {first}"
        return InitialSize(first, reason, multiple)
    found = max(Sizes(multiple).at_most(largest(measured, room, most)), first)
    sizes = ", ".join(str(size) for size, _ in measured)
    return InitialSize(
        found,
        f"micro-batch {found} is the largest expected to fit into {format_bytes(max(room, 0))} "
        f"(measured at {sizes})",
        multiple,
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
