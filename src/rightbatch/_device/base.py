"""What a probe asks of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Reading:
    """Memory since the last `Device.reset_peak()`; all in bytes, over the device's base.

    `peak_bytes` is what people mean by peak memory. `charged_bytes` is the peak of what the limit
    counts, which is what decides whether a size fits; it is at least as large, since it includes
    memory that is held but not used. `live_bytes` is the peak of what tensors occupy, where the
    device knows it. `detail` holds further figures by name.
    """

    peak_bytes: int
    charged_bytes: int
    live_bytes: int | None = None
    detail: Mapping[str, int] = field(default_factory=dict)


class Device(Protocol):
    """One kind of memory. Used inside a probe's process only, in the order of the methods here.

    Every implementation passes `rightbatch.testing.DeviceContract`.
    """

    @property
    def name(self) -> str:
        """The name torch knows it by."""

    @property
    def unrepeatable(self) -> float:
        """By what share of the limit the charge of the same steps differs from run to run."""

    @property
    def capability(self) -> float | None:
        """CUDA's compute capability, by which memory can be predicted; None elsewhere."""

    def prepare(self) -> None:
        """Start what any process using the device has (context, thread pools); sets the base."""

    def capacity(self) -> int:
        """Bytes that this process may add now, other processes and containers considered."""

    def enforce(self, limit: int) -> bool:
        """Make going `limit` bytes over the base fail for real; False where that is impossible."""

    def reset_peak(self) -> None:
        """Begin a new measurement."""

    def read(self) -> Reading:
        """The peak since `reset_peak`. Synchronises the device."""
