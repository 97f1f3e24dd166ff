"""Devices: free memory, peak memory, memory limits, and the detection of out-of-memory errors."""

from __future__ import annotations

from rightbatch._device.base import Device, Reading
from rightbatch._device.cpu import CPU
from rightbatch._device.cuda import CUDA
from rightbatch._device.mps import MPS
from rightbatch._device.out_of_memory import died_out_of_memory, is_out_of_memory
from rightbatch._errors import UsageError

__all__ = ["Device", "Reading", "died_out_of_memory", "is_out_of_memory", "open_device"]


def open_device(name: str | None = None) -> Device:
    """Return the device named `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`.

    Without a name: the first CUDA device, else MPS, else the CPU. Imports torch; does not
    initialize the device.

    Raises:
        UsageError: if the device is unknown or not available on this machine.
    """
    import torch

    if name is None:
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UsageError(f"unknown device {name!r}; valid devices are cpu, cuda, cuda:N and mps")
    if kind == "cuda":
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            raise UsageError(
                f"{name} is not available: PyTorch {torch.__version__} sees {count} CUDA "
                "device(s); use --device cpu, or `rightbatch predict` for a GPU you don't have"
            )
        return CUDA(int(index or 0))
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError(
                "mps is not available: it requires an Apple GPU and a PyTorch built for it; "
                "use --device cpu"
            )
        return MPS()
    return CPU()
