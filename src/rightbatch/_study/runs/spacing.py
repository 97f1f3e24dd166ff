"""How far apart the points of a run are. Imports no torch."""

from __future__ import annotations

import math

SPACING = 1.02
"""Points are 2% of the steps apart: the same density for all batch sizes, few for long runs."""
POINTS_BY_TIME = 2000
"""There is at least a point per second, so that long steps are seen, up to about this number."""


def next_point(steps: int) -> int:
    """Return the number of steps at which the point after one at `steps` is due.

    >>> next_point(1), next_point(100), next_point(1000)
    (2, 102, 1020)
    """
    return max(steps + 1, math.ceil(steps * SPACING))


def period(seconds: float) -> float:
    """Return the seconds after which a point is due in any case, after `seconds` of training.

    >>> period(10), period(4000)
    (1.0, 2.0)
    """
    return max(1.0, seconds / POINTS_BY_TIME)
