"""Helpers of the engine tests: linear service tables, and a batch server simulated step by step."""

from __future__ import annotations

import bisect
import math

from rightbatch._serve.engine.scheduler import Scheduler
from rightbatch._serve.engine.service_times import ServiceTable

# a, b and the latency target in seconds, and the rates of cameras and of Poisson arrivals, items a
# second, that at least 99% must bear (from the simulations that the policy was chosen by).
GOALS = (
    (1e-3, 4e-3, 0.033, 731, 620),
    (1e-3, 4e-3, 0.1, 901, 866),
    (0.2e-3, 3e-3, 0.033, 3980, 3840),
    (5e-3, 20e-3, 0.2, 156, 136),
)


def line_table(a, b, largest=1024):
    return ServiceTable({2**k: [a * 2**k + b] for k in range(largest.bit_length())})


def scheduler_on_a_line(a, b, latency, *, largest=1024, **options):
    return Scheduler(line_table(a, b, largest), latency, **options)


def greedy(moments, seconds, cap=math.inf):
    """Latencies where all that waits goes at once, at most `cap` items, and nothing is dropped."""
    latencies, free, first = [], 0.0, 0
    while first < len(moments):
        start = max(free, moments[first])
        waiting = bisect.bisect_right(moments, start) - first
        size = int(min(waiting, cap))
        free = start + seconds(size)
        latencies += [free - at for at in moments[first : first + size]]
        first += size
    return latencies
