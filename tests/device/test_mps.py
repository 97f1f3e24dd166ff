"""The device contract on a real Apple GPU; skipped without one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from rightbatch._device import Device
from rightbatch._device.mps import MPS
from rightbatch.testing import DeviceContract

pytestmark = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU here")


class TestMPS(DeviceContract):
    @pytest.fixture
    def device(self) -> Iterator[Device]:
        yield MPS()
        torch.mps.set_per_process_memory_fraction(1.0)
        torch.mps.empty_cache()
