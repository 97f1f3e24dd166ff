"""The protocol of a device: memory limit, peak memory and capacity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """Peak memory since the last `Device.reset_peak()`, in bytes above the device's baseline.

    `peak_bytes` is the memory in use. `charged_bytes` is the peak of what the limit counts and
    decides whether a batch fits; it is at least as large, because it includes memory that the
    allocator holds without using it. `live_bytes` is the peak of the tensors alone, None where
    the device does not count it. `detail` has further figures by name.
    """

    peak_bytes: int
    charged_bytes: int
    live_bytes: int | None = None
    detail: Mapping[str, int] = field(default_factory=dict)


class Device(Protocol):
    """One kind of memory, used inside a probe's process, in the order of the methods below.

    Every implementation passes `rightbatch.testing.DeviceContract`.
    """

    @property
    def name(self) -> str:
        """The device's name in torch."""

    @property
    def charge_variation(self) -> float:
        """How much `charged_bytes` varies between runs of the same steps (share of the limit)."""

    @property
    def capability(self) -> float | None:
        """CUDA's compute capability, which `predict` needs; None for other devices."""

    def prepare(self) -> None:
        """Create what every process on the device has (context, thread pools); set the baseline."""

    def capacity(self) -> int:
        """Return the bytes this process can still allocate, given other processes and cgroups."""

    def enforce(self, limit: int) -> bool:
        """Make an allocation beyond `limit` bytes above the baseline fail; False if unsupported."""

    def reset_peak(self) -> None:
        """Start a new measurement."""

    def read(self) -> Reading:
        """Return the peak since `reset_peak`. Synchronizes the device."""
