"""The device contract on a real CUDA (or ROCm) GPU; skipped without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rightbatch._device import Device
from rightbatch._device.cuda import CUDA
from rightbatch.testing import DeviceContract

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


class TestCUDA(DeviceContract):
    tolerance = 48 * 2**20  # cuBLAS's workspace is reserved memory, 32 MiB of it on Hopper

    @pytest.fixture
    def device(self) -> Iterator[Device]:
        yield CUDA(0)
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.cuda.empty_cache()


def test_reserved_memory_is_the_peak_and_allocated_memory_is_live() -> None:
    device = CUDA(0)
    device.prepare()
    device.reset_peak()
    held = torch.ones(100 * 2**20 + 1, dtype=torch.uint8, device="cuda:0")
    reading = device.read()
    assert reading.peak_bytes == torch.cuda.max_memory_reserved(0)
    assert reading.live_bytes == torch.cuda.max_memory_allocated(0)
    assert held.nbytes <= reading.live_bytes <= reading.peak_bytes
