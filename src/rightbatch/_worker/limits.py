"""The device of a worker, with the share of it that may be used."""

from __future__ import annotations

from typing import Any

from rightbatch._worker.bootstrap import Channel
from rightbatch._worker.wire import Header


def open_limited_device(channel: Channel, header: Header, limit: int | None) -> Any:
    """Open the header's device, enforce the smaller of `limit` and its capacity, and report it.

    The margin is kept by enforcing it: a size that fits below the ceiling leaves what is above.
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
