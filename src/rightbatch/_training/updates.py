"""The largest batch size that leaves a training enough updates.

The largest batch that fits is rarely the best one: an epoch of few updates improves little, however
fast it is.
"""

from __future__ import annotations

from math import ceil

DEFAULT_BATCH = 16
"""The default of most examples and of Ultralytics."""

SMALL = 1024
"""Largest batch size for which two updates per epoch suffice, if `epochs` is not given."""

UPDATES_PER_EPOCH = 10
UPDATES_IN_ALL = 300
"""Assumptions, not measurements: below them, short trainings from scratch visibly fall behind."""


def most_useful(examples: int, epochs: int | None) -> int:
    """Return the largest batch size with enough updates per epoch and in all; 1 if none has.

    Without `epochs` a training continues until its target: then two updates per epoch suffice for a
    small data set.

    >>> most_useful(examples=240, epochs=28), most_useful(examples=240, epochs=None)
    (23, 120)
    """
    if epochs is None:
        return max(examples // UPDATES_PER_EPOCH, min(examples // 2, SMALL), 1)
    per_epoch = max(UPDATES_PER_EPOCH, ceil(UPDATES_IN_ALL / epochs))
    # ceil(examples / size) >= per_epoch  <=>  size < examples / (per_epoch - 1)
    return max(ceil(examples / (per_epoch - 1)) - 1, 1)
