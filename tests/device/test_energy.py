"""NVML's energy counter, by a library that answers as NVIDIA's does."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from cuda_stand_in import StandIn
from rightbatch._device.energy import joules_so_far


class FakeNVML(ModuleType):
    """One GPU, asked by its UUID; `fails` is the call that raises."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails: str = "") -> None:
        super().__init__("pynvml")
        self.fails = fails
        self.asked: list[Any] = []
        self.millijoules = 5_000

    def _call(self, name: str) -> None:
        if name == self.fails:
            raise self.NVMLError(name)

    def nvmlInit(self) -> None:
        self._call("nvmlInit")

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:
        self._call("nvmlDeviceGetHandleByUUID")
        self.asked.append(uuid)
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._call("nvmlDeviceGetTotalEnergyConsumption")
        assert handle == "handle"
        return self.millijoules


def test_joules_are_those_of_the_gpu_with_the_tensors_uuid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nvml = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with StandIn().entered():
        assert joules_so_far(torch.device("cuda")) == 5.0
        nvml.millijoules = 7_250
        assert joules_so_far(torch.device("cuda:0")) == 7.25
    assert set(nvml.asked) == {b"GPU-01234567-89ab-cdef-0123-456789abcdef"}


@pytest.mark.parametrize(
    "fails", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetTotalEnergyConsumption"]
)
def test_a_gpu_that_does_not_count_has_none(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Before Volta there is no counter, on ROCm no library, and of MIG's parts no handle."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNVML(fails))
    with StandIn().entered():
        assert joules_so_far(torch.device("cuda")) is None


def test_without_the_library_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with StandIn().entered():
        assert joules_so_far(torch.device("cuda")) is None


def test_other_devices_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNVML()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert joules_so_far(torch.device("cpu")) is None
    assert not nvml.asked
