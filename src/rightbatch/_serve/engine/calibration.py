"""Calibration: measure growing batches of one real item, and estimate the capacity from them.

Sizes 1, 2, 4, 8 ... (or those that the model accepts) are measured until memory is exhausted, two
batches no longer fit into the latency target, or larger batches stop serving more items per second.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._serve.engine.scheduler import Scheduler
from rightbatch._serve.engine.service_times import ServiceTable
from rightbatch._serve.engine.virtual_clock import Arrival, cameras, poisson, simulate

_REPEATS = (3, 9)  # measured batches per size, at least and at most
_SECONDS_PER_SIZE = 0.5  # after which the minimum of repeats suffices
_NO_GAIN = 1.02  # a doubling with less than this gain in items per second counts as no gain
_PATIENCE = 2  # consecutive sizes without gain that end the search
_ATTAINED = 0.99  # share of the items in time that a load must reach to fit
_LARGEST = 1024  # largest batch size that is measured
_MOST_CAMERAS, _MOST_REQUESTS = 500, 10_000.0  # upper limits of the estimates; requests per second
_EVENTS = 6000  # of a simulated load: enough to resolve 99%, fast to simulate

Function = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Calibration:
    """Measured seconds and the capacity that follows; seconds, and items per second.

    `samples` is batch size -> measured seconds. `stopped_by` is what ended the search: `latency`,
    `memory`, `failure` (another error), `sizes` (the model accepts no larger size), `max_batch`,
    `no gain`, or `largest` (1024).
    """

    latency: float
    samples: dict[int, list[float]]
    stopped_by: str
    largest_batch: int
    items_per_second: float
    one_by_one: float
    cameras: int
    camera_rate: float
    requests_per_second: float

    @property
    def batching_helps(self) -> bool:
        """Whether batches larger than 1 serve more items per second within the target."""
        return self.largest_batch > 1

    @property
    def reason(self) -> str:
        target = f"{self.latency * 1000:g} ms"
        single = 1000 / self.one_by_one
        if single > self.latency * 1000:
            return f"one item takes {single:.3g} ms, longer than the target of {target}"
        if 2 * single > self.latency * 1000:
            return (
                f"one item takes {single:.3g} ms and two take more than {target}: "
                "only items that arrive while the device is free are in time"
            )
        if not self.batching_helps and max(self.samples) > 1:
            return "larger batches do not serve more items per second within the target"
        return {
            "latency": f"two larger batches take more than {target}",
            "memory": "a larger batch ran out of memory",
            "failure": "a larger batch failed",
            "sizes": "the model accepts no larger batch",
            "max_batch": "limited by max_batch",
            "no gain": "larger batches do not serve more items per second",
            "largest": f"batches above {_LARGEST} were not measured",
        }[self.stopped_by]

    def __str__(self) -> str:
        fit = (
            "no camera"
            if not self.cameras
            else f"{self.cameras} camera" + ("s" if self.cameras > 1 else "")
        )
        verb = "fits" if self.cameras <= 1 else "fit"
        sizes = (
            f"batches up to {self.largest_batch}; {self.items_per_second:.3g} frames/s "
            f"instead of {self.one_by_one:.3g} one by one"
            if self.batching_helps
            else f"batches of 1; {self.one_by_one:.3g} frames/s"
        )
        return (
            f"{sizes}; {fit} at {self.camera_rate:g} frames/s {verb}, "
            f"or {self.requests_per_second:.3g} requests/s ({self.reason})"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "latency_target_ms": 1000 * self.latency,
            "largest_batch": self.largest_batch,
            "items_per_second": self.items_per_second,
            "one_by_one": self.one_by_one,
            "cameras": self.cameras,
            "camera_rate": self.camera_rate,
            "requests_per_second": self.requests_per_second,
            "stopped_by": self.stopped_by,
            "seconds": {str(size): taken for size, taken in self.samples.items()},
            "reason": self.reason,
            "text": str(self),
        }


def measure(
    function: Function,
    item: Any,
    latency: float,
    *,
    sizes: Sequence[int] | None = None,
    max_batch: int | None = None,
    is_out_of_memory: Callable[[BaseException], bool] = lambda error: False,
    show: Callable[[str], None] = lambda text: None,
) -> tuple[dict[int, list[float]], str]:
    """Measure growing batches of `item`; return size -> seconds, and what ended the search.

    Raises:
        Exception: what the function raised on the smallest batch.
        ResultCountError: if a batch did not return one result per item.
    """
    samples: dict[int, list[float]] = {}
    best = 0.0
    without_gain = 0
    for size in _growing(sizes, max_batch):
        show(f"batches of {size}")
        try:
            taken = _seconds(function, item, size)
        except Exception as error:
            if not samples or isinstance(error, ResultCountError | UsageError):
                raise
            return samples, "memory" if is_out_of_memory(error) else "failure"
        samples[size] = taken
        table = ServiceTable(samples)
        if 2 * table.seconds(size) > latency:
            return samples, "latency"
        rate = size / table.seconds(size)
        without_gain = without_gain + 1 if rate < _NO_GAIN * best else 0
        best = max(best, rate)
        if without_gain == _PATIENCE:
            return samples, "no gain"
    if 2 * ServiceTable(samples).slow_seconds(max(samples)) > latency:
        return samples, "latency"  # in the slowest 1% of the batches
    if sizes:
        return samples, "sizes"
    return samples, "max_batch" if max(samples) == max_batch else "largest"


def estimate_capacity(
    samples: dict[int, list[float]],
    stopped_by: str,
    latency: float,
    *,
    sizes: Sequence[int] | None = None,
    max_batch: int | None = None,
    camera_rate: float = 10.0,
) -> Calibration:
    """Estimate the capacity from measured seconds by simulating loads on the scheduler."""

    def scheduler() -> Scheduler:
        return Scheduler(ServiceTable(samples), latency, sizes=sizes, max_batch=max_batch)

    decided = scheduler()
    draw = _noisy_seconds(samples, decided)
    smallest = decided.padded(1)

    def fits(load: Callable[[float], list[Arrival]], contract: Any, rate: float) -> bool:
        # At least ten targets long, so that a queue can grow, within a limit of events.
        seconds = min(max(_EVENTS, 10 * latency * rate), 3 * _EVENTS) / rate
        attained = simulate(scheduler(), load(seconds), seconds=draw(), contract=contract)
        return attained.attainment >= _ATTAINED

    # A rate above the capacity would seem to fit while the queue grows within a long target.
    most = min(int(decided.rate() / camera_rate), _MOST_CAMERAS)
    low, high = 0, most + 1
    while high - low > 1:
        count = (low + high) // 2
        fit = fits(
            lambda seconds, n=count: cameras(n, camera_rate, seconds),  # type: ignore[misc]
            "freshest",
            count * camera_rate,
        )
        low, high = (count, high) if fit else (low, count)
    rate_low, rate_high = 0.0, min(decided.rate(), _MOST_REQUESTS)
    for _ in range(7):
        rate = (rate_low + rate_high) / 2
        fit = fits(lambda seconds, r=rate: poisson(r, seconds), "deadline", rate)  # type: ignore[misc]
        rate_low, rate_high = (rate, rate_high) if fit else (rate_low, rate)
    return Calibration(
        latency=latency,
        samples=samples,
        stopped_by=stopped_by,
        largest_batch=decided.largest,
        items_per_second=decided.rate(),
        one_by_one=1 / decided.table.seconds(smallest),
        cameras=low,
        camera_rate=camera_rate,
        requests_per_second=rate_low,
    )


def _growing(sizes: Sequence[int] | None, max_batch: int | None) -> Iterator[int]:
    """Yield 1, 2, 4 ... or the allowed sizes, up to and including `max_batch`."""
    doubling = itertools.takewhile(
        lambda size: size <= _LARGEST, map((2).__pow__, itertools.count())
    )
    candidates = iter(sorted(sizes)) if sizes else doubling
    for size in candidates:
        if max_batch is not None and size >= max_batch:
            yield size if sizes else max_batch
            return
        yield size


def _seconds(function: Function, item: Any, size: int) -> list[float]:
    batch = [item] * size
    check_results(function(batch), size)  # warm-up: the first batch of a size is not measured
    taken: list[float] = []
    least, most = _REPEATS
    while len(taken) < least or (len(taken) < most and sum(taken) < _SECONDS_PER_SIZE):
        start = time.perf_counter()
        function(batch)
        taken.append(time.perf_counter() - start)
    return taken


class ResultCountError(TypeError):
    """A function did not return one result per item."""


def check_results(results: Any, size: int) -> None:
    """Check that `results` has one entry per item.

    Raises:
        ResultCountError: if it is not a sequence of length `size`.
    """
    try:
        length = len(results)
    except TypeError:
        raise ResultCountError(
            f"the function must return a list with one result per item ({size}), "
            f"got {type(results).__name__}"
        ) from None
    if length != size:
        raise ResultCountError(f"the function returned {length} result(s) for {size} item(s)")


def _noisy_seconds(
    samples: dict[int, list[float]], scheduler: Scheduler
) -> Callable[[], Callable[[int], float]]:
    """Return a factory of `seconds` functions with the measured noise, the same in every load."""
    table = ServiceTable(samples)
    noise = [seconds / table.seconds(size) for size, taken in samples.items() for seconds in taken]

    def draw() -> Callable[[int], float]:
        factors = itertools.cycle(noise)
        return lambda size: scheduler.table.seconds(size) * next(factors)

    return draw
