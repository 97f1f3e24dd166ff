"""The contract of a `Device`, which probes rely on."""

from __future__ import annotations

import gc

import torch
from torch import Tensor

from rightbatch._device import Device, is_out_of_memory

_MIB = 2**20


class DeviceContract:
    """Tests of a `Device`. Subclass it with a fixture `device`: a `Device` that is not prepared.

    The fixture undoes what `enforce` does to the process. The tests allocate `allocation` bytes;
    readings may exceed that by `tolerance`, since an allocator's blocks are larger than its
    tensors, and may fall short by 2%, since the process may free other memory meanwhile. `name` and
    `charge_variation` are read before `prepare`; the other methods are called in a probe's order.
    """

    allocation = 256 * _MIB
    tolerance = 32 * _MIB

    @property
    def least(self) -> int:
        """The smallest reading that is accepted for `allocation`."""
        return int(0.98 * self.allocation)

    def test_torch_knows_it_by_its_name(self, device: Device) -> None:
        tensor = torch.zeros(1, device=device.name)
        assert tensor.device.type == torch.device(device.name).type

    def test_its_charge_repeats_to_a_share_of_the_limit(self, device: Device) -> None:
        assert 0 <= device.charge_variation < 1

    def test_it_has_a_capacity_in_bytes(self, device: Device) -> None:
        device.prepare()
        capacity = device.capacity()
        assert isinstance(capacity, int)
        assert capacity > self.allocation, (
            "too little memory is free for the other tests of the contract"
        )

    def test_what_is_allocated_appears_in_peak_and_charge(self, device: Device) -> None:
        device.prepare()
        device.reset_peak()
        held = self._allocate(device)
        reading = device.read()
        assert self.least <= reading.peak_bytes <= self.allocation + self.tolerance
        assert self.least <= reading.charged_bytes <= self.allocation + self.tolerance
        del held

    def test_the_charge_is_no_less_than_the_peak_nor_the_peak_than_live_tensors(
        self, device: Device
    ) -> None:
        device.prepare()
        device.reset_peak()
        held = self._allocate(device)
        reading = device.read()
        assert reading.charged_bytes >= reading.peak_bytes
        if reading.live_bytes is not None:
            assert self.allocation <= reading.live_bytes <= reading.peak_bytes
        assert all(isinstance(value, int) for value in reading.detail.values())
        del held

    def test_a_peak_outlives_what_made_it(self, device: Device) -> None:
        device.prepare()
        device.reset_peak()
        self._free(self._allocate(device))
        reading = device.read()
        assert reading.peak_bytes >= self.least
        assert reading.charged_bytes >= self.least
        assert device.read().peak_bytes >= self.least, "reading is not resetting"

    def test_a_reset_forgets_the_peak_and_the_charge(self, device: Device) -> None:
        device.prepare()
        device.reset_peak()
        self._free(self._allocate(device))
        device.read()
        device.reset_peak()
        reading = device.read()
        assert reading.peak_bytes <= self.tolerance
        assert reading.charged_bytes <= self.tolerance

    def test_what_is_held_through_a_reset_still_counts(self, device: Device) -> None:
        device.prepare()
        device.reset_peak()
        held = self._allocate(device)
        device.reset_peak()
        reading = device.read()
        assert reading.peak_bytes >= self.least
        assert reading.charged_bytes >= self.least
        del held

    def test_a_limit_that_is_enforced_fails_above_it_and_only_there(self, device: Device) -> None:
        device.prepare()
        device.capacity()
        enforced = device.enforce(self.allocation + 2 * self.tolerance)
        assert isinstance(enforced, bool)
        device.reset_peak()
        for _ in range(2):  # a failure must not reduce the free memory
            self._free(self._allocate(device))
            assert device.read().peak_bytes >= self.least
            if enforced:
                self._refuse(device)

    def _allocate(self, device: Device, times: int = 1) -> Tensor:
        """Return a tensor of `allocation` bytes, written so that its memory is resident."""
        return torch.ones(times * self.allocation, dtype=torch.uint8, device=device.name)

    def _free(self, tensor: Tensor) -> None:
        """Free a tensor to which the caller holds no reference."""
        del tensor
        gc.collect()

    def _refuse(self, device: Device) -> None:
        try:
            self._allocate(device, 2)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return
        raise AssertionError("twice the limit was allocated, though enforce() returned True")
