"""What an allocator holds without need, and whether it had to search for room."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def release(device: torch.device) -> None:
    """Give back what is cached; tensors stay. Costs milliseconds, so it is for emergencies."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform.startswith("linux"):
        # glibc keeps what was freed; other C libraries have no such call.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def allocator_retries(device: torch.device) -> int:
    """How often CUDA's allocator had to free its cache to serve a request; 0 on other devices."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))
