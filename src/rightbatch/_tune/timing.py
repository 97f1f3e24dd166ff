"""Times steps of every micro-batch size in a worker process, until the medians are precise."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from rightbatch._tune.process import TimedSteps, TuneProcess
from rightbatch._tune.throughput import spread
from rightbatch._worker import BuildError
from rightbatch._workload.workload import StepSeconds

T = TypeVar("T")

TIGHT = 0.02
"""A size needs no more samples if half the 95% interval of its median is below this share."""
BURST = 0.25
"""Seconds of one size before the next one is timed, so that a slow moment affects all sizes."""
LEAST_ROUNDS = 3


class Timing:
    """Times steps, all results by micro-batch size.

    `samples` are raw step times, `watts` the power if the device reports energy, `values` the
    smallest number of values per channel of a BatchNorm. `bf16` is the speed-up in bf16.

    Raises (`run`):
        WorkloadError: if the workload fails.
    """

    def __init__(
        self, process: TuneProcess, limit: int | None, show: Callable[[str], object]
    ) -> None:
        self._process, self._limit, self._show = process, limit, show
        self.samples: dict[int, list[StepSeconds]] = defaultdict(list)
        self.watts: dict[int, list[float]] = defaultdict(list)
        self.values: dict[int, int] = {}
        self.bf16: float | None = None

    def run(self, sizes: Sequence[int], seconds: float) -> None:
        """Time sizes in turns, until all are precise, for `seconds` at most."""
        end = time.perf_counter() + seconds
        sizes = self._warm_up(sizes, seconds / 8)
        todo, rounds = sizes, 0
        burst = min(BURST, seconds / (LEAST_ROUNDS * len(sizes)))
        while todo and (rounds < LEAST_ROUNDS or time.perf_counter() < end):
            for size in todo:
                if rounds >= LEAST_ROUNDS and time.perf_counter() > end:
                    break
                self._show(f"timing micro-batches of {size}")
                report = self._timed(size, burst)
                if report.outcome != "ok":  # out of memory on other examples than before
                    sizes.remove(size)
                    break
                self.samples[size] += report.steps
                if report.watts is not None:
                    self.watts[size].append(report.watts)
            rounds += 1
            todo = [size for size in sizes if spread(self.samples[size]) > TIGHT]
        self.bf16 = self._faster_in_bf16()

    def _warm_up(self, wanted: Sequence[int], seconds: float) -> list[int]:
        """Run a step of every size from the smallest on, and return the sizes that are timed.

        Sizes after one that takes longer than `seconds` are left out: their batches are run in
        parts of smaller sizes.
        """
        sizes: list[int] = []
        for size in wanted:
            self._show(f"timing micro-batches of {size}")
            began = time.perf_counter()
            report = self._timed(size, 0.0)
            if report.failure is not None and sizes:
                break  # out of memory, though the examples of `fit` did fit
            if report.failure is not None:
                raise report.failure.as_error("out of memory at the smallest batch size")
            sizes.append(size)
            if report.values_per_channel is not None:
                self.values[size] = report.values_per_channel
            if time.perf_counter() - began > seconds and len(sizes) > 2:
                break
        return sizes

    def _timed(self, size: int, seconds: float, precision: str | None = None) -> TimedSteps:
        report = raise_build_errors(
            lambda: self._process.time(size, seconds, self._limit, precision)
        )
        if report.outcome == "failed" and report.failure is not None and precision is None:
            raise report.failure.as_error(f"the workload failed at batch size {size}")
        return report

    def _faster_in_bf16(self) -> float | None:
        """Return the speed-up of bf16 over fp32; None if the session sets its own precision."""
        size = max(self.samples)
        times: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for _ in range(4):
            for precision, seconds in times.items():
                report = self._timed(size, 0.0, precision)
                if report.outcome != "ok":
                    return None
                seconds.append(report.steps[0].computing)
        return min(times["fp32"][1:]) / min(times["bf16"][1:])


def raise_build_errors(ask: Callable[[], T]) -> T:
    """Return the answer of a process; raise a `BuildError` as the error of a verb."""
    try:
        return ask()
    except BuildError as error:
        raise error.failure.as_error("the workload failed during tuning") from None
