"""Which size to train at, while nothing is known of the task but its data: enough updates first.

The largest batch that fits is seldom the best one: an epoch of few updates learns little, however
fast it is. Until `tune` measures that, `auto` is the smaller of the largest that fits and the
largest that leaves enough updates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

UPDATES_PER_EPOCH = 10
UPDATES_IN_ALL = 300
"""Assumptions, not measurements: below them, short trainings from scratch visibly fall behind."""


@dataclass(frozen=True)
class Choice:
    """A batch size with the reason for it."""

    batch_size: int
    updates: int
    reason: str


def choose(largest: int, smallest: int, examples: int, epochs: int) -> Choice:
    """The smaller of `largest` and what leaves enough updates, and no less than `smallest`.

    >>> choose(largest=512, smallest=1, examples=240, epochs=28).batch_size
    23
    """
    per_epoch = max(UPDATES_PER_EPOCH, ceil(UPDATES_IN_ALL / epochs))
    # ceil(examples / size) >= per_epoch  <=>  size < examples / (per_epoch - 1)
    useful = max(ceil(examples / (per_epoch - 1)) - 1, smallest)
    size = min(largest, useful)
    updates = ceil(examples / size)
    all_of_them = f"{updates} updates per epoch and {updates * epochs} in all"
    if largest <= useful:
        return Choice(size, updates * epochs, f"{size} is the largest that fits: {all_of_them}")
    few = ceil(examples / largest)
    wanted = f"{UPDATES_PER_EPOCH} per epoch and {UPDATES_IN_ALL} in all are wanted"
    reason = (
        f"{largest} would fit; {size} trains better here, because it makes {all_of_them} "
        f"where {largest} makes {few} and {few * epochs} ({wanted})"
    )
    if updates * epochs < UPDATES_IN_ALL:
        reason += f"; for {UPDATES_IN_ALL}, train {ceil(UPDATES_IN_ALL / updates)} epochs"
    return Choice(size, updates * epochs, reason)
