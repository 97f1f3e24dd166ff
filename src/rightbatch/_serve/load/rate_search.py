"""Search the largest rate at which enough items are in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._serve.load.early_stopping import SHARE, check_share, queries_needed
from rightbatch._serve.load.load_test import LoadResult

_FIRST_STEP = 0.1  # share of the guessed rate


@dataclass(frozen=True)
class LargestRate:
    """The largest rate that held, in items per second, and all runs of the search, in order."""

    rate: float
    share: float
    runs: tuple[tuple[float, LoadResult], ...] = field(repr=False)

    @property
    def last(self) -> LoadResult | None:
        """The last run at this rate, which confirmed it."""
        held = [result for rate, result in self.runs if rate == self.rate]
        return held[-1] if held else None

    @property
    def is_generators(self) -> bool:
        """Whether the load generator may be the limit: at the next higher rate it lagged."""
        above = [(rate, result) for rate, result in self.runs if rate > self.rate]
        lowest = min((rate for rate, _ in above), default=0.0)
        return any(result.lags for rate, result in above if rate == lowest)

    def __str__(self) -> str:
        last = self.last
        if last is None:
            return f"no rate with {100 * self.share:g}% in time was found"
        text = f"{self.rate:.4g}/s with {100 * self.share:g}% in time, in two runs ({last})"
        if not last.is_sure(self.share):
            needed = queries_needed(last.offered - last.in_time, self.share)
            text += f"; 99% confidence needs {needed} items with as few late"
        if self.is_generators:
            text += "; above it the load generator lagged: the server may sustain more"
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
    """Search the largest rate that holds twice, in multiples of `step`.

    The search takes growing strides from the guess until one rate holds and one fails, then
    bisects. The result is repeated with other arrivals; if that fails, the search continues below,
    with both schedules at each rate. A failed rate is not repeated, so the result errs low.

    Args:
        attempt: runs a load of so many items per second; the second argument is the seed.
        guess: items per second to start at.
        step: resolution: the frame rate of a camera, or 1% to 2% of the guess.
        share: of the items that must be in time.
    """
    if guess <= 0 or step <= 0:
        raise UsageError(f"guess and step must be above 0, got {guess} and {step}")
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
    found = _largest(lambda steps: holds(steps, 0), at, max(1, round(_FIRST_STEP * at)))
    if found:
        found = _largest(
            lambda steps: holds(steps, 1) and holds(steps, 0), found, 1, failed=found + 1
        )
    return LargestRate(found * step, share, tuple(runs))


def _largest(holds: Callable[[int], bool], at: int, stride: int, failed: int = 0) -> int:
    """Return the largest integer that holds, 0 if 1 does not.

    Growing strides from `at` until one holds and one fails, then bisection. `failed` is a number
    known to fail; 0: none.
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
