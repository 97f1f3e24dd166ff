"""What the parts use of rightbatch beside its public functions, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rightbatch._device import is_out_of_memory, open_device
from rightbatch._device.caches import allocator_retries, synchronize
from rightbatch._device.energy import joules_so_far
from rightbatch._predict.gpus import catalogue
from rightbatch._predict.overhead import CONTEXT, CUBLAS, CUBLAS_FROM_HOPPER
from rightbatch._predict.replay import read_recording, replay

__all__ = [
    "CONTEXT",
    "CUBLAS",
    "CUBLAS_FROM_HOPPER",
    "allocator_retries",
    "gpu_like",
    "is_out_of_memory",
    "joules_so_far",
    "open_device",
    "replayed",
    "synchronize",
]


def gpu_like(capability: float, total_bytes: int) -> str:
    """The catalogue's GPU of the same compute capability whose memory is nearest."""
    same = [gpu for gpu in catalogue() if gpu.capability == capability] or list(catalogue())
    return min(same, key=lambda gpu: abs(gpu.usable_bytes - total_bytes)).name


def replayed(path: Path) -> dict[str, Any]:
    """What `rightbatch predict --replay` says of a recording; needs no package but torch."""
    return replay(read_recording(path)).to_dict()
