"""Schedules of arrivals for load tests."""

from __future__ import annotations

import random
from typing import Literal

from rightbatch._errors import UsageError
from rightbatch._serve.engine.virtual_clock import Arrival, cameras

Kind = Literal["poisson", "cameras"]


def schedule(
    kind: Kind, rate: float, seconds: float, seed: int = 0, per: float = 10
) -> list[Arrival]:
    """Arrivals of so many items a second: Poisson, or as many cameras as make that rate.

    `per` is the rate of a camera, or as near to it as makes the whole exact. Every seed has phases
    and moments of its own. The Poisson process is one that has just this rate: given the number of
    its moments, they are uniform.
    """
    if rate <= 0 or seconds <= 0 or per <= 0:
        raise UsageError(f"a load has rates and seconds above 0, got {rate}, {seconds} and {per}")
    if kind == "poisson":
        rng = random.Random(seed)
        moments = sorted(rng.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))
        return [(at, "requests") for at in moments]
    if kind == "cameras":
        # A camera that comes in later than the end would make the load outlast its time.
        count = max(1, round(rate / per))
        arrivals = cameras(count, rate / count, seconds, seed)
        return [(at, stream) for at, stream in arrivals if at < seconds]
    raise UsageError(f"{kind!r} are no arrivals; the known ones: poisson, cameras")
