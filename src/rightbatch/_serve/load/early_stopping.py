"""How many items a load test needs: the criterion of MLPerf's early stopping."""

from __future__ import annotations

import math

from rightbatch._errors import UsageError

SHARE = 0.99  # of the items that must be in time for a rate to hold
_CONFIDENCE = 0.99  # of MLPerf's early stopping


def queries_needed(late: int, share: float = SHARE) -> int:
    """Return how many items show with 99% confidence that at least `share` are in time.

    The criterion of MLPerf's early stopping (`Server`: 459 queries with 0 late). It assumes
    independent items, which those of one batch are not, so it is a lower bound.

    Args:
        late: how many of the items are late.
        share: of the items in time, between 0 and 1.
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
    """Raise UsageError unless 0 < share < 1; no number of items can show that none is ever late."""
    if not 0 < share < 1:
        raise UsageError(f"the share of items in time must lie between 0 and 1, got {share}")


def _at_most(count: int, trials: int, chance: float) -> float:
    """Return the binomial probability of at most `count` successes."""
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
