"""A metric at fixed times of training, so that runs of different speed can be compared."""

from __future__ import annotations

import math
from typing import Self

from rightbatch._study.records import Run
from rightbatch._training.targets import is_better

FIRST_MARK, PER_DOUBLING = 0.1, 4
"""Seconds of the first comparison, and comparisons per doubling of the time after that."""
MARKS = 24 * PER_DOUBLING
"""Number of marks; the last one is at 19 days."""


class Marks:
    """A metric at the marks that a run has passed, and the run's last measurement.

    A mark has the newest measurement; for the training loss, the mean since the previous mark.
    """

    def __init__(self, name: str) -> None:
        self.at: dict[int, float] = {}
        self.seconds = 0.0
        self.newest: float | None = None
        self._name = name
        self._next, self._steps = 0, 0.0
        self._is_new = False
        self._sum, self._weight = 0.0, 0.0
        self._new: list[int] = []

    @classmethod
    def of(cls, run: Run, name: str) -> Self:
        """Return the marks of a run that has ended."""
        marks = cls(name)
        if (curve := run.curves.get(name)) is not None:
            columns = (curve.seconds, curve.steps, curve.values)
            for point in zip(*(column.tolist() for column in columns), strict=True):
                marks.add(*point)
        return marks

    def add(self, seconds: float, steps: float, value: float | None) -> None:
        """Add a point of the run; `value` is None if the metric was not measured."""
        first = self._next
        while self._next < MARKS and seconds_of(self._next) < seconds:
            if self.newest is not None:
                self.at[self._next] = self.newest
            self._next += 1
        if self._next > first:
            self._sum, self._weight = 0.0, 0.0
            if self._is_new:
                # one mark per measurement, else a long step would be judged repeatedly
                self._new.append(self._next - 1)
                self._is_new = False
        self.seconds = seconds
        if value is not None and math.isfinite(value):
            weight = max(steps - self._steps, 1.0)
            self._sum, self._weight = self._sum + weight * value, self._weight + weight
            self.newest = self._sum / self._weight if self._name == "loss" else value
            self._is_new = True
            self._steps = steps

    def take_new(self) -> list[int]:
        """Return the marks with a new measurement, each only once."""
        new, self._new = self._new, []
        return new

    def best_until(self, mark: int) -> float:
        """Return the best value up to this mark."""
        best = min if is_better(self._name, 0.0, 1.0) else max
        return best(value for one, value in self.at.items() if one <= mark)

    def value_at(self, mark: int) -> float | None:
        """Return the value at a mark; after the end of the run, its last value."""
        return self.newest if mark >= self._next else self.at.get(mark)


def seconds_of(mark: int) -> float:
    """Return the seconds of training at a mark.

    >>> [seconds_of(mark) for mark in (0, 4, 8)]
    [0.1, 0.2, 0.4]
    """
    return float(FIRST_MARK * 2 ** (mark / PER_DOUBLING))


def mark_after(seconds: float) -> int:
    """Return the first mark at or after `seconds`.

    >>> mark_after(0.4), mark_after(0.41), mark_after(0)
    (8, 9, 0)
    """
    return next((mark for mark in range(MARKS) if seconds_of(mark) >= seconds), MARKS)
