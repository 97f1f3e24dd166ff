"""How long a batch takes, by its size: measured, and refined while it serves.

Seconds of n items are level x shape(n) x noise. The shape is a table of the sizes that ran, a line
between two of them. The level is what all sizes share and what drifts: a hot chip, a neighbour on
the machine. The noise is a factor that all sizes share too, so that a tail can be known before any
one size has run a hundred times.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median

_RECENT = 31  # batches whose median is the level
_TAIL = 512  # batches whose noise gives the tail
_REFINE = 0.01  # of a surprise goes into the shape; slow, or it would swallow what is the level's
_SURPRISE = 0.2  # at most, in logarithms: an outlier says that it is slow, not how slow


class ServiceTable:
    """Seconds of a batch by its size.

    Args:
        samples: size -> the seconds that batches of it took; at least one of each.
    """

    def __init__(self, samples: Mapping[int, Sequence[float]]) -> None:
        if not samples or any(size < 1 or not taken for size, taken in samples.items()):
            raise ValueError("a service table needs sizes of at least 1, each with its seconds")
        self._shape = {size: max(median(taken), 1e-9) for size, taken in sorted(samples.items())}
        self._sizes = list(self._shape)
        self._level = 1.0
        self._levels: deque[float] = deque(maxlen=_RECENT)
        self._noise: deque[float] = deque(maxlen=_TAIL)
        self._tail: float | None = None
        for size, taken in samples.items():
            self._noise.extend(seconds / self._shape[size] for seconds in taken)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that ran."""
        return tuple(self._sizes)

    @property
    def largest(self) -> int:
        """The largest that ran."""
        return self._sizes[-1]

    @property
    def level(self) -> float:
        """How slow it is now, as a multiple of the calibration."""
        return self._level

    @property
    def slow_level(self) -> float:
        """The level that 99 of 100 batches do not exceed."""
        if self._tail is None:
            # Without the largest: one hiccup among the few of a calibration is no tail.
            noise = sorted(self._noise)[:-1] or self._noise
            self._tail = max(1.0, quantile(noise, 0.99))
        return self._level * self._tail

    def seconds(self, size: int) -> float:
        """The median seconds of a batch of `size` items."""
        return self._level * self._shape_of(size)

    def slow_seconds(self, size: int) -> float:
        """Seconds that 99 of 100 batches of that size do not exceed."""
        return self.slow_level * self._shape_of(size)

    def observe(self, size: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        seconds = max(seconds, 1e-9)  # a clock may not have moved
        shape = self._shape_of(size)
        self._levels.append(seconds / shape)
        if len(self._levels) == _RECENT:
            self._level = median(self._levels)
            # The noise of the one in the middle, whose level is known by now from both sides: a
            # step of the level is then no noise.
            self._noise.append(self._levels[_RECENT // 2] / self._level)
            self._tail = None
        surprise = math.log(seconds / (self._level * shape))
        surprise = max(-_SURPRISE, min(_SURPRISE, surprise))
        if size not in self._shape:
            insort(self._sizes, size)
        self._shape[size] = shape * math.exp(_REFINE * surprise)

    def line(self) -> tuple[float, float]:
        """Seconds per item and per batch, (a, b) of a x n + b, by least squares over the table.

        With a single size nothing is known per batch: b is 0.
        """
        points = [(size, self.seconds(size)) for size in self._sizes]
        if len(points) == 1:
            return points[0][1] / points[0][0], 0.0
        mean_size = sum(size for size, _ in points) / len(points)
        mean = sum(seconds for _, seconds in points) / len(points)
        spread = sum((size - mean_size) ** 2 for size, _ in points)
        slope = sum((size - mean_size) * (seconds - mean) for size, seconds in points) / spread
        return slope, mean - slope * mean_size

    def _shape_of(self, size: int) -> float:
        known = self._shape.get(size)
        if known is not None:
            return known
        if len(self._sizes) == 1:
            return self._shape[self._sizes[0]] * size / self._sizes[0]
        place = min(max(bisect_left(self._sizes, size), 1), len(self._sizes) - 1)
        below, above = self._sizes[place - 1], self._sizes[place]
        share = (size - below) / (above - below)
        between = self._shape[below] + share * (self._shape[above] - self._shape[below])
        return max(between, 1e-9)  # beyond the table, where a line may fall below zero


def quantile(values: Sequence[float] | deque[float], q: float) -> float:
    """The q-quantile, between neighbours linearly.

    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
