"""The device of a worker, with its memory limit."""

from __future__ import annotations

from typing import Any

from rightbatch._worker.bootstrap import Channel
from rightbatch._worker.wire import Header


def open_limited_device(channel: Channel, header: Header, limit: int | None) -> Any:
    """Open the header's device, limited to the smaller of `limit` (bytes) and its capacity.

    The ceiling, which is the limit less the margin, is enforced: a size that runs leaves the margin
    free. Reports the device to the parent.
    """
    from rightbatch._device import open_device

    device = open_device(header.device)
    device.prepare()
    capacity = device.capacity()
    limit = capacity if limit is None else min(limit, capacity)
    ceiling = int(limit * (1 - max(header.margin, device.charge_variation)))
    channel.send(
        event="device",
        device=device.name,
        capacity_bytes=capacity,
        limit_bytes=limit,
        ceiling_bytes=ceiling,
        enforced=device.enforce(ceiling),
        capability=device.capability,
    )
    device.reset_peak()
    return device
