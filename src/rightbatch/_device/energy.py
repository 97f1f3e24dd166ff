"""Energy that a device has used, as NVIDIA's management library counts it."""

from __future__ import annotations

from typing import Any

import torch


def joules_so_far(device: torch.device) -> float | None:
    """Since the driver was loaded, of the whole GPU; None where it is not counted.

    NVML counts in millijoules and updates some ten times a second, so differences over less than a
    second are coarse.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None  # run from a checkout, on a machine without nvidia-ml-py
    try:
        pynvml.nvmlInit()
        handle = _handle_of(pynvml, device)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None  # ROCm, GPUs before Volta, and parts of a GPU (MIG) have no counter


def _handle_of(pynvml: Any, device: torch.device) -> Any:
    """By its UUID, since CUDA_VISIBLE_DEVICES changes CUDA's numbers and not NVML's."""
    uuid = torch.cuda.get_device_properties(device).uuid
    return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
