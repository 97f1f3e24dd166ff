"""Apple GPUs: unified memory, limited by Metal's recommended working set."""

from __future__ import annotations

from rightbatch._device.base import Reading


class MPS:
    """The Apple GPU.

    Metal records no peak. The driver's figure after the steps is used instead: the allocator
    keeps its heaps until `empty_cache` is called.
    """

    name = "mps"
    charge_variation = 0.0
    capability = None

    def __init__(self) -> None:
        self._base = 0

    def prepare(self) -> None:
        import torch

        x = torch.ones(64, 64, device="mps")
        (x @ x).sum().item()
        del x
        torch.mps.empty_cache()
        self._base = int(torch.mps.driver_allocated_memory())

    def capacity(self) -> int:
        import torch

        from rightbatch._device.cpu import CPU

        working_set = int(torch.mps.recommended_max_memory()) - self._base
        return max(min(working_set, CPU().capacity()), 1)

    def enforce(self, limit: int) -> bool:
        import torch

        fraction = (self._base + limit) / int(torch.mps.recommended_max_memory())
        torch.mps.set_per_process_memory_fraction(min(max(fraction, 0.0), 2.0))
        return True

    def reset_peak(self) -> None:
        import torch

        torch.mps.synchronize()
        torch.mps.empty_cache()

    def read(self) -> Reading:
        import torch

        torch.mps.synchronize()
        driver = max(int(torch.mps.driver_allocated_memory()) - self._base, 0)
        live = int(torch.mps.current_allocated_memory())
        return Reading(driver, driver, detail={"current_bytes": live})
