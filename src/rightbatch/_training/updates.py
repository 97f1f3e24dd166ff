"""How large a batch may be before a training has too few updates.

The largest batch that fits is seldom the best one: an epoch of few updates learns little, however
fast it is.
"""

from __future__ import annotations

from math import ceil

DEFAULT_BATCH = 16
"""What most examples and Ultralytics begin with."""

SMALL = 1024
"""Batches that a small data set may be cut into two of."""

UPDATES_PER_EPOCH = 10
UPDATES_IN_ALL = 300
"""Assumptions, not measurements: below them, short trainings from scratch visibly fall behind."""


def most_useful(examples: int, epochs: int | None) -> int:
    """The largest batch size that leaves enough updates per epoch and in all; 1 if none does.

    Without `epochs` a training goes on until it is good: then two updates an epoch will do where
    the data set is small.

    >>> most_useful(examples=240, epochs=28), most_useful(examples=240, epochs=None)
    (23, 120)
    """
    if epochs is None:
        return max(examples // UPDATES_PER_EPOCH, min(examples // 2, SMALL), 1)
    per_epoch = max(UPDATES_PER_EPOCH, ceil(UPDATES_IN_ALL / epochs))
    # ceil(examples / size) >= per_epoch  <=>  size < examples / (per_epoch - 1)
    return max(ceil(examples / (per_epoch - 1)) - 1, 1)
