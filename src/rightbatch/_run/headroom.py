"""The batch sizes that would fit, from the memory of a run at one size.

Memory is linear in the micro-batch size: what stays plus an amount for each example. On the CPU
both are known where malloc tells what is in use, and the interval is what malloc holds beyond that.
Else what libraries load when they are first used is only known to lie between two bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch._training.watched import LiveBytes, Watched
from rightbatch._units import format_bytes

_MIB = 2**20
_LOADED = {"cpu": (20 * _MIB, 90 * _MIB), "cuda": (0, 64 * _MIB)}
"""Bytes that libraries load at the first step, beside the weights: threads, kernels, workspaces."""
_HELD = (0.07, 0.37)
"""What a process is charged beyond what is in use, near its limit, as a share of the room for
examples: what malloc holds, and what libraries load. Measured by `benchmarks.commands` with limits
of 0.6 to 1.1 GiB: the least where tensors are above 32 MiB, which malloc returns at once, the most
where there are many small ones; two of five scripts held still more."""
_MOST_GRADIENTS = 0.1
"""Of what a step needs: with more, the amount for an example is too uncertain."""
_MOST_HELD = 0.25
"""Of the room, in the watched run: with more, what is held at the limit is too uncertain."""
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
    if limit is not None and watched.live is not None and watched.batch_size:
        return _from_live(watched, watched.live, watched.batch_size, limit * (1 - margin))
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


def _from_live(watched: Watched, live: LiveBytes, batch_size: int, limit: float) -> Headroom:
    ranks = watched.ranks
    parts = max(round(batch_size / (live.examples * ranks)), 1) * ranks
    # Of the gradients, an unknown share was there at the peak.
    fixed = live.fixed - live.gradients / 2
    room, by_examples = limit - fixed, (live.peak - fixed) / live.examples
    if by_examples <= 0 or room <= 0 or live.gradients > _MOST_GRADIENTS * (live.peak - fixed):
        reason = "its batches are too small beside the memory that stays"
        return Headroom(None, None, f"{reason}; `rightbatch fit` measures it")
    held_now = (watched.peak_bytes or 0) - live.peak
    if held_now > _MOST_HELD * room:
        held_text = f"its processes hold {format_bytes(held_now)} more than they use"
        return Headroom(None, None, f"{held_text}; `rightbatch fit` measures it")
    high, low = (room * (1 - held) / by_examples for held in _HELD)
    return Headroom(max(int(low), 1) * parts, max(int(high), 1) * parts)
