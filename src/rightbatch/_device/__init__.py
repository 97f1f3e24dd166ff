"""Devices: how much memory there is, how much was used, and what running out looks like."""

from __future__ import annotations

from rightbatch._device.base import Device, Reading
from rightbatch._device.cpu import CPU
from rightbatch._device.cuda import CUDA
from rightbatch._device.mps import MPS
from rightbatch._device.out_of_memory import death_by_memory, is_out_of_memory
from rightbatch._errors import UsageError

__all__ = ["Device", "Reading", "death_by_memory", "is_out_of_memory", "open_device"]


def open_device(name: str | None = None) -> Device:
    """The device called `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`; by default the best one here.

    Imports torch, does not touch the device yet.

    Raises:
        UsageError: for an unknown device, or one that this machine does not have.
    """
    import torch

    if name is None:
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UsageError(f"unknown device {name!r}; known are cpu, cuda, cuda:N and mps")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            raise UsageError(
                f"{name} is not here: PyTorch {torch.__version__} sees {count} CUDA device(s); "
                "use --device cpu, or `rightbatch predict` for a GPU you do not have"
            )
        return CUDA(int(index or 0))
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("mps is not here: it needs an Apple GPU and a PyTorch built for it")
        return MPS()
    return CPU()
