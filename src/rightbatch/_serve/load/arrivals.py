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
    """Return the arrivals of `rate` items per second: Poisson, or cameras that add up to the rate.

    Args:
        kind: `poisson` or `cameras`.
        rate: items per second, exact: the Poisson process is conditioned on its number of arrivals,
            which are then uniform.
        seconds: length of the schedule.
        seed: of arrival times and camera phases.
        per: frames per second of a camera, rounded so that the total rate is exact.
    """
    if rate <= 0 or seconds <= 0 or per <= 0:
        raise UsageError(f"rate, seconds and per must be above 0, got {rate}, {seconds} and {per}")
    if kind == "poisson":
        rng = random.Random(seed)
        moments = sorted(rng.uniform(0, seconds) for _ in range(max(1, round(rate * seconds))))
        return [(at, "requests") for at in moments]
    if kind == "cameras":
        # Jitter may move a frame beyond the end of the schedule.
        count = max(1, round(rate / per))
        arrivals = cameras(count, rate / count, seconds, seed)
        return [(at, stream) for at, stream in arrivals if at < seconds]
    raise UsageError(f"unknown arrivals {kind!r}; choose poisson or cameras")
