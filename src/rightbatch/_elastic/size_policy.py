"""The policy of the micro-batch size over time, from failures and successes; no side effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

PATIENCE = 20
"""Successful steps before emptying the cache is worth another attempt at the same size."""
FIRST_WAIT, LONGEST_WAIT = 50, 1600
"""Successful steps before a larger micro-batch is tried; doubled each time that fails."""
MAX_RETRIED_STEPS = 2
"""Consecutive steps with a retry of the allocator after which the micro-batch shrinks."""

Decision = Literal["again", "smaller", "larger", "none"]


@dataclass
class MicroBatchSize:
    """The micro-batch size in use, from `least` to `most`.

    The first failure after `PATIENCE` successful steps repeats the same size, since the cache is
    emptied and fragmentation may have been the cause. Each further failure halves the size, to a
    multiple of `multiple`. After `wait` successful steps twice the size is tried, up to `most`.
    """

    size: int
    most: int
    least: int = 1
    successes: int = 0
    since_emptied: int = PATIENCE
    wait: int = FIRST_WAIT
    before_trial: int | None = None
    retried_steps: int = 0
    multiple: int = 1

    def on_failure(self) -> Decision:
        """Change the size after memory ran out; return the decision."""
        self.successes = self.retried_steps = 0
        if self.before_trial is not None:
            self.size, self.before_trial = self.before_trial, None
            self.wait = min(2 * self.wait, LONGEST_WAIT)
            self.since_emptied = 0
            return "smaller"
        patience = PATIENCE if self.size > self.least else 1  # there is no smaller size to try
        if self.since_emptied >= patience:
            self.since_emptied = 0
            return "again"
        return self._shrink()

    def on_success(self, *, is_single_part: bool, allocator_retried: bool = False) -> Decision:
        """Change the size after a successful step; return the decision.

        `is_single_part` says that one part held the whole batch, so that no part may have been as
        large as the size. `allocator_retried` says that the allocator freed its cache to serve a
        request.
        """
        self.since_emptied += 1
        self.retried_steps = self.retried_steps + 1 if allocator_retried else 0
        if self.retried_steps >= MAX_RETRIED_STEPS:
            self.retried_steps = self.successes = 0
            return self._shrink()
        if is_single_part:
            return "none"
        self.before_trial = None
        self.successes += 1
        if self.size < self.most and self.successes >= self.wait:
            self.successes = 0
            self.before_trial = self.size
            self.size = min(2 * self.size, self.most)
            return "larger"
        return "none"

    def _shrink(self) -> Decision:
        if self.size <= self.least:
            return "none"
        half = self.size // 2
        self.size = max(half - half % self.multiple, self.least)
        self.wait = min(2 * self.wait, LONGEST_WAIT)
        return "smaller"

    def state_dict(self) -> dict[str, Any]:
        """Return the fields, which `MicroBatchSize(**state)` takes."""
        return asdict(self)


def next_trial(measured: Sequence[tuple[int, int]], room: int, whole: int, least: int) -> int:
    """Return the size to measure next, or 0 when `largest` can answer.

    `measured` are (size, bytes of its forward and backward pass), `room` the bytes available,
    `whole` the largest size of use, `least` the smallest valid one.
    """
    if not measured:
        return min(least, whole)
    size, needed = measured[-1]
    following = min(2 * size, whole)
    if following == size or needed > room / 2:
        return 0
    if len(measured) > 1 and _expected(measured, following) > room / 2:
        return 0  # the slope is known, and a trial itself must not run out of memory
    return following


def largest(measured: Sequence[tuple[int, int]], room: int, whole: int) -> int:
    """Return the largest size that needs at most `room`, by the line through the last two."""
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
