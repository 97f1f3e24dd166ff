"""The batch sizes that would fit, from the memory of a run at one size.

Memory is linear in the micro-batch size: what stays (weights, gradients, optimizer state, and what
libraries load when they are first used) plus an amount for each example. With runs of two sizes the
line is known. With one, the part that libraries load is only known to lie between two bounds, which
gives an interval.
"""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._training.watched import Watched

_MIB = 2**20
_LOADED = {"cpu": (20 * _MIB, 90 * _MIB), "cuda": (0, 64 * _MIB)}
"""Bytes that libraries load at the first step, beside the weights: threads, kernels, workspaces."""
_ERROR = 0.03
"""Relative error of the amount for an example: allocators hold more than is used."""
_WIDEST = 0.3
"""An interval that is wider, as a share of its middle, is no answer."""


@dataclass(frozen=True)
class Headroom:
    """The largest micro-batch that fits lies between `low` and `high`; None with a `reason`."""

    low: int | None
    high: int | None
    reason: str = ""


def headroom(watched: Watched, margin: float, memory: int | None = None) -> Headroom:
    """Return the largest batch sizes that would fit into `memory` (default: the device's) less the
    `margin`, for the same number of micro-batches and ranks."""
    limit = min(filter(None, (memory, watched.limit_bytes)), default=None)
    if limit is None or watched.peak_bytes is None or watched.fixed_bytes is None:
        return Headroom(None, None, "its memory was not seen")
    if watched.batch_size is None or not watched.micro_batches:
        return Headroom(None, None, "the size of its batches was not seen")
    parts = watched.micro_batches * watched.ranks
    size = watched.batch_size / parts
    room = limit * (1 - margin)
    loaded = _LOADED.get(watched.device.partition(":")[0], _LOADED["cuda"])
    estimates = []
    for each in loaded:
        fixed = watched.fixed_bytes + each * (watched.ranks if watched.device == "cpu" else 1)
        by_examples = watched.peak_bytes - fixed
        if by_examples <= 0:
            return Headroom(None, None, "its batches are too small beside the memory that stays")
        estimates.append(size * (room - fixed) / by_examples)
    low, high = min(estimates) * (1 - _ERROR), max(estimates) * (1 + _ERROR)
    if high - low > _WIDEST * (high + low) / 2:
        reason = "its batches are too small beside the memory that stays"
        return Headroom(None, None, f"{reason}; `rightbatch fit` measures it")
    return Headroom(int(low) * parts, max(int(high), int(low)) * parts)
