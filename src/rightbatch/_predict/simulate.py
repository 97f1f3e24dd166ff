"""A trace through the allocator: what one process would hold of the device, with its workspaces."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._predict.allocator import Allocator, AllocatorOutOfMemory, AllocatorSettings
from rightbatch._predict.trace import Trace

STEADY = 4
"""Steps added before the peak is read: fragmentation grows over the first ones."""


@dataclass(frozen=True)
class Simulated:
    """Peaks in bytes, as `torch.cuda.max_memory_allocated` and `max_memory_reserved` tell them."""

    allocated_bytes: int
    reserved_bytes: int
    retries: int


def simulate(
    trace: Trace, settings: AllocatorSettings | None = None, workspace: int = 0
) -> Simulated | None:
    """Run a trace from the start of a process; None if it runs out of memory.

    `workspace` are the bytes that each thread's first matrix product makes cuBLAS keep.
    """
    allocator = Allocator(settings)
    trace = trace.settled(STEADY)
    products = set(trace.gemms) if workspace else set()
    addresses: dict[int, int] = {}
    malloc, free, sizes = allocator.malloc, allocator.free, trace.sizes
    try:
        for index, event in enumerate(trace.order):
            if index in products:
                malloc(workspace)
            if event >= 0:
                addresses[event] = malloc(sizes[event])
            else:
                free(addresses.pop(~event))
    except AllocatorOutOfMemory:
        return None
    return Simulated(allocator.peak_allocated, allocator.peak_reserved, allocator.retries)
