"""Cached memory: freeing it, waiting for the device, and counting the allocator's retries."""

from __future__ import annotations

import ctypes
import gc
import sys

import torch


def release(device: torch.device) -> None:
    """Free cached memory, not tensors. Takes milliseconds: call it after an out-of-memory error."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform.startswith("linux"):
        # glibc keeps freed memory for reuse; other C libraries have no such function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def allocator_retries(device: torch.device) -> int:
    """Return how often CUDA's allocator freed its cache and retried; 0 on other devices."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))
