"""Seconds of a batch by its size: measured in the calibration and updated while serving.

The model is: seconds of n items = level × shape(n) × noise. The shape is a table of the sizes that
ran, interpolated linearly. The level is common to all sizes and drifts (a hot chip, another process
on the machine). The noise factor is common to all sizes too, so that its tail is known before any
one size has run a hundred times.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import linear_regression, median

_LEVEL_WINDOW = 31  # batches; their median is the level
_NOISE_WINDOW = 512  # batches; their noise gives the tail
_SHAPE_RATE = 0.01  # share of a deviation that updates the shape; slow, so that drift stays level
_MAX_DEVIATION = 0.2  # in logarithms: an outlier says that a batch is slow, not how slow


class ServiceTable:
    """Seconds of a batch by its size.

    Args:
        samples: batch size -> measured seconds, at least one for each size.
    """

    def __init__(self, samples: Mapping[int, Sequence[float]]) -> None:
        if not samples or any(size < 1 or not taken for size, taken in samples.items()):
            raise ValueError(
                "a service table needs sizes of at least 1, each with measured seconds"
            )
        self._shape = {size: max(median(taken), 1e-9) for size, taken in sorted(samples.items())}
        self._sizes = list(self._shape)
        self._level = 1.0
        self._levels: deque[float] = deque(maxlen=_LEVEL_WINDOW)
        self._restarted = False  # the window holds what ran since, and is not full yet
        self._noise: deque[float] = deque(maxlen=_NOISE_WINDOW)
        self._tail: float | None = None
        for size, taken in samples.items():
            self._noise.extend(seconds / self._shape[size] for seconds in taken)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that were measured."""
        return tuple(self._sizes)

    @property
    def largest(self) -> int:
        """The largest size that was measured."""
        return self._sizes[-1]

    @property
    def level(self) -> float:
        """The current duration as a multiple of the calibration."""
        return self._level

    @property
    def slow_level(self) -> float:
        """The 99% quantile of the level."""
        if self._tail is None:
            # Without the largest: a single outlier of a short calibration would be the quantile.
            noise = sorted(self._noise)[:-1] or self._noise
            self._tail = max(1.0, quantile(noise, 0.99))
        return self._level * self._tail

    def seconds(self, size: int) -> float:
        """Return the median seconds of a batch of `size` items."""
        return self._level * self._shape_of(size)

    def slow_seconds(self, size: int) -> float:
        """Return the 99% quantile of the seconds of a batch of `size` items."""
        return self.slow_level * self._shape_of(size)

    def observe(self, size: int, seconds: float) -> None:
        """Update the level, the noise and the shape with a measured batch."""
        seconds = max(seconds, 1e-9)  # the clock may be coarser than the batch
        shape = self._shape_of(size)
        self._levels.append(seconds / shape)
        is_full = len(self._levels) == _LEVEL_WINDOW
        if is_full or self._restarted:
            self._level = median(self._levels)
        if is_full:
            self._restarted = False
            # The noise of the middle batch, whose level is known from both sides: a step of the
            # level does not count as noise.
            self._noise.append(self._levels[_LEVEL_WINDOW // 2] / self._level)
            self._tail = None
        deviation = math.log(seconds / (self._level * shape))
        deviation = max(-_MAX_DEVIATION, min(_MAX_DEVIATION, deviation))
        if size not in self._shape:
            insort(self._sizes, size)
        self._shape[size] = shape * math.exp(_SHAPE_RATE * deviation)

    def restart(self, size: int, seconds: float) -> None:
        """Take the level from this batch and those that follow: the ones before are out of date."""
        self._levels.clear()
        self._restarted = True
        self._tail = None
        self.observe(size, seconds)

    def line(self) -> tuple[float, float]:
        """Fit seconds = a × n + b by least squares; return (a, b). With a single size, b is 0."""
        sizes, seconds = self._sizes, [self.seconds(size) for size in self._sizes]
        if len(sizes) == 1:
            return seconds[0] / sizes[0], 0.0
        slope, intercept = linear_regression(sizes, seconds)
        return slope, intercept

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
        return max(between, 1e-9)  # extrapolation may fall below zero


def quantile(values: Sequence[float] | deque[float], q: float) -> float:
    """Return the q-quantile, interpolated linearly.

    >>> quantile([3.0, 1.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
