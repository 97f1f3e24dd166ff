"""Run a trace through the simulated allocator: the memory peaks of one process."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._predict.allocator import Allocator, AllocatorOutOfMemory, AllocatorSettings
from rightbatch._predict.trace import Trace

STEADY = 4
"""Steps added before the peak is read, because fragmentation grows over the first steps."""


@dataclass(frozen=True)
class Simulated:
    """Peaks in bytes, like `torch.cuda.max_memory_allocated` and `max_memory_reserved`."""

    allocated_bytes: int
    reserved_bytes: int
    retries: int


def simulate(
    trace: Trace, settings: AllocatorSettings | None = None, workspace: int = 0
) -> Simulated | None:
    """Run a trace from the start of a process; None if it runs out of memory.

    `workspace` is the size, in bytes, of cuBLAS' workspace at each thread's first matrix product.
    """
    allocator = Allocator(settings)
    trace = trace.settled(STEADY)
    products = set(trace.gemms) if workspace else set()
    addresses: dict[int, int] = {}
    malloc, free, sizes, streams = allocator.malloc, allocator.free, trace.sizes, trace.streams
    try:
        for index, event in enumerate(trace.order):
            if index in products:
                malloc(workspace)
            if event < 0:
                address = addresses.pop(~event, None)
                if address is not None:
                    free(address)
            elif sizes[event]:
                addresses[event] = malloc(sizes[event], streams[event] if streams else 0)
    except AllocatorOutOfMemory:
        return None
    return Simulated(allocator.peak_allocated, allocator.peak_reserved, allocator.retries)
