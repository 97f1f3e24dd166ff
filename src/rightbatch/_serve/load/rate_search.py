"""The largest rate at which enough items are in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._serve.load.early_stopping import SHARE, check_share, queries_needed
from rightbatch._serve.load.load_test import LoadResult

_WIDTH = 0.1  # of the guessed rate: the first step of the search


@dataclass(frozen=True)
class LargestRate:
    """The largest rate that held, items a second, and every run on the way to it, in order."""

    rate: float
    share: float
    runs: tuple[tuple[float, LoadResult], ...] = field(repr=False)

    @property
    def last(self) -> LoadResult | None:
        """The run that confirmed it."""
        held = [result for rate, result in self.runs if rate == self.rate]
        return held[-1] if held else None

    @property
    def is_generators(self) -> bool:
        """Whether it may be the load generator's limit, and not the server's: above it the
        generator itself was too late."""
        above = [(rate, result) for rate, result in self.runs if rate > self.rate]
        lowest = min((rate for rate, _ in above), default=0.0)
        return any(result.lags for rate, result in above if rate == lowest)

    def __str__(self) -> str:
        last = self.last
        if last is None:
            return f"no rate was found at which {100 * self.share:g}% are in time"
        text = f"{self.rate:.4g}/s with {100 * self.share:g}% in time, in two runs ({last})"
        if not last.is_sure(self.share):
            needed = queries_needed(last.offered - last.in_time, self.share)
            text += f"; to be sure it takes {needed} items with so few late"
        if self.is_generators:
            text += "; above it the generator itself was late: the server may bear more"
        return text

    def to_dict(self) -> dict[str, Any]:
        last = self.last
        return {
            "items_per_second": self.rate,
            "share": self.share,
            "is_sure": last is not None and last.is_sure(self.share),
            "is_generators": self.is_generators,
            "runs": [{"asked_per_second": rate, **run.to_dict()} for rate, run in self.runs],
            "text": str(self),
        }


def largest_rate(
    attempt: Callable[[float, int], LoadResult],
    guess: float,
    step: float,
    *,
    share: float = SHARE,
) -> LargestRate:
    """Search the largest rate that holds, in whole steps; it must hold twice.

    From the guess in growing strides until one holds and one fails, then by halves. What was found
    is tried once more with other arrivals, and where that fails the search goes on below it, now
    with both at every rate. What fails is not tried again: the result errs to the low side.

    Args:
        attempt: runs a load of so many items a second; its second argument is the schedule's seed.
        guess: items a second to start at.
        step: the resolution: the rate of a camera, or a per cent or two of the guess.
        share: of the items in time.
    """
    if guess <= 0 or step <= 0:
        raise UsageError(f"a guess and a step are above 0, got {guess} and {step}")
    check_share(share)
    runs: list[tuple[float, LoadResult]] = []
    known: dict[tuple[int, int], bool] = {}

    def holds(steps: int, seed: int) -> bool:
        if (steps, seed) not in known:
            result = attempt(steps * step, seed)
            runs.append((steps * step, result))
            known[steps, seed] = result.holds(share)
        return known[steps, seed]

    at = max(1, round(guess / step))
    found = _largest(lambda steps: holds(steps, 0), at, max(1, round(_WIDTH * at)))
    if found:
        found = _largest(
            lambda steps: holds(steps, 1) and holds(steps, 0), found, 1, failed=found + 1
        )
    return LargestRate(found * step, share, tuple(runs))


def _largest(holds: Callable[[int], bool], at: int, stride: int, failed: int = 0) -> int:
    """The largest whole number that holds; 0 where even 1 does not.

    In growing strides until one holds and one fails, then by halves. `failed` is one of which that
    is known; 0: none.
    """
    held, above = 0, failed
    while above != 1 and (not held or not above or above - held > 1):
        if holds(at):
            held = at
        else:
            above = at
        if held and above:
            at = (held + above) // 2
        else:
            at = max(1, at + (-stride if above else stride))
            stride *= 2
    return held
