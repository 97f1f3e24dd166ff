"""Queueing theory of a batch server: the oracle for tests and benchmarks of the scheduler.

A batch of n items takes a × n + b seconds, and all waiting items (at most a cap) run at once.

- Capacity and largest batch follow from the linear service time by arithmetic.
- `mean_latency` is the upper bound of Inoue, "Queueing analysis of GPU-based inference servers with
  dynamic batching: a closed-form characterization", Performance Evaluation 147, 2021
  (arXiv 1912.06322), for Poisson arrivals and batches of unlimited size.
- `latency_quantile` has no closed form: it solves the embedded Markov chain of the queue length at
  the starts of batches (bulk service, Bailey 1954) numerically.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def capacity(a: float, b: float, cap: float = math.inf) -> float:
    """Return the items per second below which the queue is stable: cap / (a × cap + b) or 1 / a."""
    return 1 / a if math.isinf(cap) else cap / (a * cap + b)


def largest_batch(a: float, b: float, latency: float) -> float:
    """Return n with 2 (a × n + b) = latency: an item waits for one batch, then for its own."""
    return (latency / 2 - b) / a


def mean_latency(a: float, b: float, rate: float) -> float:
    """Return the mean seconds from arrival to result for Poisson arrivals and unlimited batches.

    Inoue's upper bound (arXiv 1912.06322), tight for loads rate × a of 0.5 and more.

    Raises:
        ValueError: if the rate is not below the capacity 1 / a.
    """
    load = rate * a
    if not 0 <= load < 1:
        raise ValueError(f"the rate must be below {1 / a:g} items per second, got {rate:g}")
    return 1.5 * b / (1 - load) + a / 2 * (load + 2) / (1 - load**2)


def latency_quantile(
    seconds: Callable[[int], float], cap: int, rate: float, q: float = 0.99
) -> float:
    """Return the q-quantile of the latency for Poisson arrivals and batches of at most `cap` items.

    The stationary distribution of the queue length at the starts of batches is found by power
    iteration; the latencies of the arrivals during each batch follow from it. If an item waits for
    several batches, the intermediate ones are assumed to be full.

    Args:
        seconds: batch size -> seconds.
        cap: the most items in a batch.
        rate: arrivals per second.
        q: the quantile.

    Raises:
        ValueError: if the rate is not below the capacity.
    """
    if rate * seconds(cap) >= cap:
        raise ValueError(f"the rate must be below {cap / seconds(cap):g} items per second")
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
    # Batches that start with an item that found the server idle.
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
    """Return how many queue lengths are considered; longer queues are negligible."""
    arrivals = rate * slowest
    return int(3 * cap + arrivals + 10 * math.sqrt(arrivals) + 20)


def _stationary(seconds: Callable[[int], float], cap: int, rate: float, states: int) -> list[float]:
    """Return the share of batches that start with each queue length; index 0 is unused."""
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
                # With an empty queue the next batch starts with the next arrival.
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
    """Return the share of batches that start with an item that found the server idle."""
    return sum(
        chance * math.exp(-rate * seconds(state))
        for state, chance in enumerate(start)
        if 1 <= state <= cap
    )


def _poisson(mean: float) -> list[float]:
    """Return the Poisson probabilities of 0, 1, 2 ... events, up to a negligible rest."""
    chances = [math.exp(-mean)]
    while sum(chances) < 1 - 1e-6 and len(chances) < 10 * mean + 50:
        chances.append(chances[-1] * mean / len(chances))
    return chances
