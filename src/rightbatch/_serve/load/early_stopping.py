"""How many items a load test needs: the criterion of MLPerf's early stopping."""

from __future__ import annotations

import math

from rightbatch._errors import UsageError

SHARE = 0.99  # of the items in time: what a rate that is borne means
_CONFIDENCE = 0.99  # of MLPerf's early stopping


def queries_needed(late: int, share: float = SHARE) -> int:
    """Items of which so few are late that 99 times in 100 not more than 1 - `share` would be.

    The criterion of MLPerf's early stopping (`Server`: 459 queries with none late). It takes items
    for independent, which those of one batch are not: the least that is needed.
    """
    check_share(share)
    low, high = late, late + 1
    while _at_most(late, high, 1 - share) > 1 - _CONFIDENCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(late, middle, 1 - share) > 1 - _CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def check_share(share: float) -> None:
    if not 0 < share < 1:  # no number of items can show that none would be late
        raise UsageError(f"a share of the items lies between 0 and 1, got {share}")


def _at_most(count: int, trials: int, chance: float) -> float:
    """The probability of at most so many successes, binomial."""
    choose = math.lgamma(trials + 1)
    return sum(
        math.exp(
            choose
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(chance)
            + (trials - k) * math.log1p(-chance)
        )
        for k in range(min(count, trials) + 1)
    )
