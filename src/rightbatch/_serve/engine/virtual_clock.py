"""Simulate a load on the scheduler with a virtual clock, without running a model."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rightbatch._serve.engine.queues import Item
from rightbatch._serve.engine.records import Contract
from rightbatch._serve.engine.scheduler import Scheduler

Arrival = tuple[float, str]  # seconds, stream


@dataclass(frozen=True)
class SimulationResult:
    """The outcome of a simulated load; times in seconds."""

    offered: int
    in_time: int
    dropped: dict[str, int]
    latencies: list[float] = field(repr=False)
    batches: list[int] = field(repr=False)

    @property
    def attainment(self) -> float:
        """The share of the offered items that was served in time."""
        return self.in_time / self.offered if self.offered else 1.0


def poisson(rate: float, seconds: float, seed: int = 0) -> list[Arrival]:
    """Return the arrivals of a Poisson process of `rate` requests per second."""
    rng = random.Random(seed)
    arrivals: list[Arrival] = []
    at = rng.expovariate(rate)
    while at < seconds:
        arrivals.append((at, "requests"))
        at += rng.expovariate(rate)
    return arrivals


def cameras(
    count: int, rate: float, seconds: float, seed: int = 0, jitter: float = 0.02
) -> list[Arrival]:
    """Return the frames of `count` cameras at `rate` frames per second, with random phases.

    `jitter` is the standard deviation of a frame's time as a share of the period.
    """
    rng = random.Random(seed)
    period = 1 / rate
    arrivals = []
    for camera in range(count):
        phase = rng.uniform(0, period)
        for frame in range(math.ceil(seconds * rate)):
            at = phase + frame * period + rng.gauss(0, jitter * period)
            arrivals.append((max(at, 0.0), f"camera{camera}"))
    return sorted(arrivals)


def simulate(
    scheduler: Scheduler,
    arrivals: Sequence[Arrival],
    *,
    seconds: Callable[[int], float] | None = None,
    contract: Contract = "deadline",
    refuse: bool = False,
    learn: bool = False,
) -> SimulationResult:
    """Run arrivals through a scheduler whose queues are empty.

    Args:
        scheduler: the scheduler; a stream is opened for each name in `arrivals`.
        arrivals: sorted by time.
        seconds: batch size -> simulated seconds; by default the table's median.
        contract: of every stream.
        refuse: reject items that are predicted to be late, as a server does with requests.
        learn: let the scheduler observe the simulated batches.
    """
    takes = seconds or scheduler.table.seconds
    dropped: Counter[str] = Counter()
    latencies: list[float] = []
    batches: list[int] = []
    for name in sorted({name for _, name in arrivals}):
        scheduler.open(name, contract)
    free_at = 0.0
    place = 0
    while place < len(arrivals) or len(scheduler.queues):
        # Advance until the device is free and an item waits.
        moment = free_at
        if not len(scheduler.queues) and place < len(arrivals):
            moment = max(free_at, arrivals[place][0])
        while place < len(arrivals) and arrivals[place][0] <= moment:
            at, name = arrivals[place]
            place += 1
            if refuse and scheduler.lateness(name, at, free_at, at) > 0:
                dropped["refused"] += 1
            elif scheduler.put(Item(name, None, at, math.inf)) is not None:
                dropped["replaced"] += 1
        dispatch, late = scheduler.next(moment)
        dropped["late"] += len(late)
        if dispatch is None:
            continue
        took = takes(dispatch.ran_as)
        free_at = moment + took
        batches.append(len(dispatch.items))
        latencies.extend(free_at - item.arrived for item in dispatch.items)
        if learn:
            scheduler.observe(dispatch.ran_as, took)
    in_time = sum(latency <= scheduler.latency + 1e-9 for latency in latencies)
    return SimulationResult(
        len(arrivals), in_time, {k: n for k, n in dropped.items() if n}, latencies, batches
    )
