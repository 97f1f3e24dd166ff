"""Closed forms for a server whose batch of n items takes a x n + b seconds: what to expect of it.

They are what the scheduler and the simulator are tested against.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def capacity(a: float, b: float, cap: float = math.inf) -> float:
    """Items a second below which the queue stays finite: cap / (a cap + b), at most 1 / a."""
    return 1 / a if math.isinf(cap) else cap / (a * cap + b)


def largest_batch(a: float, b: float, latency: float) -> float:
    """The n with 2 (a n + b) = latency: an item waits for one batch at most, then for its own."""
    return (latency / 2 - b) / a


def mean_latency(a: float, b: float, rate: float) -> float:
    """Seconds from arrival to result, on average: Poisson arrivals, all that waits goes at once.

    Inoue, "Queueing analysis of GPU-based inference servers with dynamic batching", 2021
    (arXiv 1912.06322); an upper bound that is tight for rate x a of 0.5 and more.
    """
    load = rate * a
    if not 0 <= load < 1:
        raise ValueError(f"the rate must lie below {1 / a:g} items a second, got {rate:g}")
    return 1.5 * b / (1 - load) + a / 2 * (load + 2) / (1 - load**2)


def latency_quantile(
    seconds: Callable[[int], float], cap: int, rate: float, q: float = 0.99
) -> float:
    """The q-quantile of the latency: Poisson arrivals, at most `cap` items in a batch.

    The Markov chain of the queue's length at the starts of batches, solved by iteration; then the
    latency of the arrivals in each state. An item that waits for more than one batch is taken to
    wait for full ones.

    Raises:
        ValueError: if the rate is not below the capacity.
    """
    if rate * seconds(cap) >= cap:
        raise ValueError(f"the rate must lie below {cap / seconds(cap):g} items a second")
    states = _states(cap, rate, seconds(cap))
    start = _stationary(seconds, cap, rate, states)
    outcomes: list[tuple[float, float]] = []  # (latency, share of arrivals)
    steps = 24
    for state in range(1, states):
        if start[state] < 1e-7:
            continue
        size = min(state, cap)
        duration = seconds(size)
        for step in range(steps):
            moment = (step + 0.5) / steps * duration
            share = start[state] * rate * duration / steps
            after = _poisson(rate * (duration - moment))
            for before, chance in enumerate(_poisson(rate * moment)):
                full, place = divmod(state - size + before, cap)
                for later, other in enumerate(after):
                    own = min(place + 1 + later, cap) if not full else cap
                    latency = duration - moment + full * seconds(cap) + seconds(own)
                    outcomes.append((latency, share * chance * other))
    # A batch that starts with an item that found the server idle: its share of all starts.
    idle = _idle_starts(seconds, cap, rate, start)
    outcomes.append((seconds(1), idle))
    outcomes.sort()
    total = sum(share for _, share in outcomes)
    passed = 0.0
    for latency, share in outcomes:
        passed += share
        if passed >= q * total:
            return latency
    return outcomes[-1][0]


def _states(cap: int, rate: float, slowest: float) -> int:
    """Queue lengths that are worth a thought."""
    arrivals = rate * slowest
    return int(3 * cap + arrivals + 10 * math.sqrt(arrivals) + 20)


def _stationary(seconds: Callable[[int], float], cap: int, rate: float, states: int) -> list[float]:
    """How often a batch starts with so many items waiting; index 0 stays empty."""
    jumps = {size: _poisson(rate * seconds(size)) for size in range(1, cap + 1)}
    now = [0.0] * states
    now[1] = 1.0
    for _ in range(2000):
        following = [0.0] * states
        for state, chance in enumerate(now):
            if chance < 1e-12:
                continue
            size = min(state, cap)
            for arrived, likely in enumerate(jumps[size]):
                # An empty queue waits for one item, and starts with it.
                left = max(state - size + arrived, 1)
                following[min(left, states - 1)] += chance * likely
        change = sum(abs(one - other) for one, other in zip(now, following, strict=True))
        now = following
        if change < 1e-9:
            break
    return now


def _idle_starts(
    seconds: Callable[[int], float], cap: int, rate: float, start: list[float]
) -> float:
    """Batches, per batch, that begin with an item that found the server idle."""
    return sum(
        chance * math.exp(-rate * seconds(state))
        for state, chance in enumerate(start)
        if 1 <= state <= cap
    )


def _poisson(mean: float) -> list[float]:
    """Probabilities of 0, 1, 2 ... events, until the rest does not matter."""
    chances = [math.exp(-mean)]
    while sum(chances) < 1 - 1e-6 and len(chances) < 10 * mean + 50:
        chances.append(chances[-1] * mean / len(chances))
    return chances
