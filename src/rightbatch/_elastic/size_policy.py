"""The size of the micro-batch over time: a pure policy of what failed and what went well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

PATIENCE = 20
"""Steps that must go well before an emptied cache is worth another try at the same size."""
FIRST_WAIT, LONGEST_WAIT = 50, 1600
"""Steps that must go well before a larger micro-batch is tried; doubled when that fails."""
PRESSED = 2
"""Consecutive steps in which the allocator had to search for room that count as a warning."""

Answer = Literal["again", "smaller", "larger", "none"]


@dataclass
class MicroBatchSize:
    """The size in use, at most `most`, at least `least`.

    After the first failure in a while the same size is tried again, since the cache was emptied
    meanwhile and what was missing may have been fragmented; then half of it, and so on. When all
    has gone well for `wait` steps, twice the size is tried, up to `most`.
    """

    size: int
    most: int
    least: int = 1
    well: int = 0
    since_emptied: int = PATIENCE
    wait: int = FIRST_WAIT
    before_trial: int | None = None
    pressed: int = 0

    def failed(self) -> Answer:
        """Memory ran out at this size: what to do, the size being changed already."""
        self.well = self.pressed = 0
        if self.before_trial is not None:
            self.size, self.before_trial = self.before_trial, None
            self.wait = min(2 * self.wait, LONGEST_WAIT)
            self.since_emptied = 0
            return "smaller"
        patience = PATIENCE if self.size > self.least else 1  # nothing smaller is left to try
        if self.since_emptied >= patience:
            self.since_emptied = 0
            return "again"
        return self._shrink()

    def went_well(self, *, is_short: bool, was_searched: bool = False) -> Answer:
        """A step survived; not `is_short` if it had several parts, so that one was of this size.

        `was_searched` says that the allocator had to search for room.
        """
        self.since_emptied += 1
        self.pressed = self.pressed + 1 if was_searched else 0
        if self.pressed >= PRESSED:
            self.pressed = self.well = 0
            return self._shrink()
        if is_short:
            return "none"
        self.before_trial = None
        self.well += 1
        if self.size < self.most and self.well >= self.wait:
            self.well = 0
            self.before_trial = self.size
            self.size = min(2 * self.size, self.most)
            return "larger"
        return "none"

    def _shrink(self) -> Answer:
        if self.size <= self.least:
            return "none"
        self.size = max(self.size // 2, self.least)
        self.wait = min(2 * self.wait, LONGEST_WAIT)
        return "smaller"

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


def next_trial(measured: Sequence[tuple[int, int]], room: int, whole: int, least: int) -> int:
    """The size to measure next, or 0 when `largest` may answer.

    `measured` are sizes with the bytes that their forward and backward pass needed, `room` the
    bytes there are, `whole` the largest size that is of use.
    """
    if not measured:
        return min(least, whole)
    size, needed = measured[-1]
    following = min(2 * size, whole)
    if following == size or needed > room / 2:
        return 0
    if len(measured) > 1 and _expected(measured, following) > room / 2:
        return 0  # it has told enough, and a trial must not be what fails
    return following


def largest(measured: Sequence[tuple[int, int]], room: int, whole: int) -> int:
    """The largest size whose need, on the line of the last two measured, is within `room`."""
    size, needed = measured[-1]
    if needed > room:
        return max((n for n, bytes_ in measured if bytes_ <= room), default=1)
    if len(measured) == 1:
        return size
    slope = _slope(measured)
    if slope <= 0:
        return whole
    return int(max(1, min(whole, size + (room - needed) / slope)))


def _slope(measured: Sequence[tuple[int, int]]) -> float:
    (size_0, needed_0), (size_1, needed_1) = measured[-2:]
    return (needed_1 - needed_0) / (size_1 - size_0)


def _expected(measured: Sequence[tuple[int, int]], size: int) -> float:
    last_size, needed = measured[-1]
    return needed + max(_slope(measured), 0.0) * (size - last_size)
