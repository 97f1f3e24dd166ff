"""A metric at fixed times of training, so that runs of different speed can be compared."""

from __future__ import annotations

import math
from typing import Self

from rightbatch._study.records import Run
from rightbatch._training.targets import is_better

FIRST_MARK, PER_DOUBLING = 0.1, 4
"""Runs are compared after so many seconds, and then so many times per doubling of them."""
MARKS = 24 * PER_DOUBLING
"""19 days."""


class Marks:
    """A metric at the marks that training has passed, and when it ended.

    A mark has the newest measurement; of the training loss it has the mean since the mark before.
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
        """The marks of a run that has ended."""
        marks = cls(name)
        if (curve := run.curves.get(name)) is not None:
            columns = (curve.seconds, curve.steps, curve.values)
            for point in zip(*(column.tolist() for column in columns), strict=True):
                marks.add(*point)
        return marks

    def add(self, seconds: float, steps: float, value: float | None) -> None:
        """A point of the run, with or without a measurement of the metric."""
        first = self._next
        while self._next < MARKS and seconds_of(self._next) < seconds:
            if self.newest is not None:
                self.at[self._next] = self.newest
            self._next += 1
        if self._next > first:
            self._sum, self._weight = 0.0, 0.0
            if self._is_new:
                # one mark for one measurement, else a long step would be judged again and again
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
        """The marks before which something was measured, each returned once."""
        new, self._new = self._new, []
        return new

    def best_until(self, mark: int) -> float:
        """The best value at this mark and those before it."""
        best = min if is_better(self._name, 0.0, 1.0) else max
        return best(value for one, value in self.at.items() if one <= mark)

    def value_at(self, mark: int) -> float | None:
        """The value at a mark; after the end of the run its last value."""
        return self.newest if mark >= self._next else self.at.get(mark)


def seconds_of(mark: int) -> float:
    """Seconds of training at a mark.

    >>> [seconds_of(mark) for mark in (0, 4, 8)]
    [0.1, 0.2, 0.4]
    """
    return float(FIRST_MARK * 2 ** (mark / PER_DOUBLING))


def mark_after(seconds: float) -> int:
    """The first mark at or after so many seconds.

    >>> mark_after(0.4), mark_after(0.41), mark_after(0)
    (8, 9, 0)
    """
    return next((mark for mark in range(MARKS) if seconds_of(mark) >= seconds), MARKS)
