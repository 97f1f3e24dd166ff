"""CUDA (and ROCm, which presents itself as CUDA): three figures that people confuse.

*allocated* is what tensors occupy, *reserved* what the caching allocator holds for them, *process*
what the driver says is gone, with kernels, workspaces and communicators outside the allocator.
"""

from __future__ import annotations

from rightbatch._device.base import Reading


class CUDA:
    """One CUDA device. The context itself is part of the base, not of the workload."""

    charge_variation = 0.0

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.name = f"cuda:{index}"
        self._capacity = 0

    @property
    def capability(self) -> float | None:
        import torch

        if torch.version.hip is not None:
            return None  # another allocator's defaults, other kernels
        major, minor = torch.cuda.get_device_capability(self.index)
        return major + minor / 10

    def prepare(self) -> None:
        import torch

        torch.cuda.set_device(self.index)
        x = torch.ones(64, 64, device=self.name)
        x @ x  # creates the context, and cuBLAS's handle and workspace
        torch.cuda.synchronize(self.index)
        del x
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.index)
        # cuBLAS keeps its workspace (32 MiB on Hopper), which is reserved memory like any other:
        # the limit counts it, so capacity and charge do as well.
        self._capacity = free + torch.cuda.memory_reserved(self.index)

    def capacity(self) -> int:
        """Free memory by the driver's account, so other processes are seen.

        On an integrated GPU (Jetson) the same memory serves the CPU, whose limits then hold too.
        """
        import torch

        if getattr(torch.cuda.get_device_properties(self.index), "is_integrated", False):
            from rightbatch._device.cpu import CPU

            return min(self._capacity, CPU().capacity())
        return self._capacity

    def enforce(self, limit: int) -> bool:
        import torch

        # The share is of the driver's total in older releases of PyTorch and of the properties' in
        # newer ones. They are equal on most devices; of the larger one it is never too much.
        _, total = torch.cuda.mem_get_info(self.index)
        total = max(total, torch.cuda.get_device_properties(self.index).total_memory)
        torch.cuda.set_per_process_memory_fraction(min(limit / total, 1.0), self.index)
        return True

    def reset_peak(self) -> None:
        import torch

        torch.cuda.synchronize(self.index)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.index)

    def read(self) -> Reading:
        import torch

        torch.cuda.synchronize(self.index)
        free, _ = torch.cuda.mem_get_info(self.index)
        allocated = torch.cuda.max_memory_allocated(self.index)
        reserved = torch.cuda.max_memory_reserved(self.index)
        process = max(self._capacity - free, 0)
        return Reading(
            peak_bytes=reserved,
            charged_bytes=max(reserved, process),
            live_bytes=allocated,
            detail={
                "allocated_bytes": allocated,
                "reserved_bytes": reserved,
                "process_bytes": process,
                "allocator_retries": int(
                    torch.cuda.memory_stats(self.index).get("num_alloc_retries", 0)
                ),
            },
        )
