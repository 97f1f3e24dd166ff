"""What this machine can do: the seconds of growing batches of one real item, and what follows.

Measured at 1, 2, 4, 8 ... (or the sizes that the model takes) until memory ends, two batches no
longer fit into the latency target, or larger ones stop serving more items a second.
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

_REPEATS = (3, 9)  # batches of a size, at least and at most
_SECONDS_PER_SIZE = 0.5  # after which the least is enough
_NO_GAIN = 1.02  # a doubling that serves less than this more a second gains nothing;
_PATIENCE = 2  # so many of them in a row end it
_ATTAINED = 0.99  # of the items in time: what "fits" means
_LARGEST = 1024  # nobody's queue is longer in time
_MOST_CAMERAS, _MOST_REQUESTS = 500, 10_000.0  # asked about; a second, the latter
_EVENTS = 6000  # of a simulated load: enough for 99%, and done in a moment

Function = Callable[[list[Any]], Sequence[Any]]


@dataclass(frozen=True)
class Calibration:
    """What was measured and what follows; seconds, and items per second.

    `samples` is size -> the seconds of its batches, `stopped_by` what ended the search: `latency`,
    `memory`, `failure` (of
    another kind), `sizes` (the model takes no more), `max_batch`, `no gain`, or `largest` (1024).
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
        """Whether larger batches serve more items a second within the target."""
        return self.largest_batch > 1

    @property
    def reason(self) -> str:
        target = f"{self.latency * 1000:g} ms"
        single = 1000 / self.one_by_one
        if single > self.latency * 1000:
            return f"one item takes {single:.3g} ms: none is done in {target}"
        if 2 * single > self.latency * 1000:
            return (
                f"one item takes {single:.3g} ms and two of them more than {target}: "
                "only items that find the device free are in time"
            )
        if not self.batching_helps and max(self.samples) > 1:
            return "larger batches serve no more a second within the target: one by one is best"
        return {
            "latency": f"two batches that are larger take more than {target}",
            "memory": "a larger one ran out of memory",
            "failure": "a larger one failed",
            "sizes": "the model takes no larger one",
            "max_batch": "as was asked",
            "no gain": "larger ones serve no more a second",
            "largest": f"more than {_LARGEST} were not tried",
        }[self.stopped_by]

    def __str__(self) -> str:
        fit = (
            "not one camera"
            if not self.cameras
            else f"{self.cameras} camera" + ("s" if self.cameras > 1 else "")
        )
        verb = "fits" if self.cameras <= 1 else "fit"
        sizes = (
            f"batches up to {self.largest_batch}; {self.items_per_second:.3g} frames/s "
            f"against {self.one_by_one:.3g} one by one"
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
    """Seconds of batches by size, and what ended the search.

    Raises:
        Exception: what the function raised on its smallest batch.
        NotOneForEach: if it does not return a result for each, in any batch.
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
        return samples, "latency"  # at times
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
    """What the measured seconds promise, by running loads through the scheduler."""

    def scheduler() -> Scheduler:
        return Scheduler(ServiceTable(samples), latency, sizes=sizes, max_batch=max_batch)

    decided = scheduler()
    draw = _drawn(samples, decided)
    smallest = decided.padded(1)

    def fits(load: Callable[[float], list[Arrival]], contract: Any, rate: float) -> bool:
        # Ten targets long, so that a queue has the time to grow, if that is not for ever.
        seconds = min(max(_EVENTS, 10 * latency * rate), 3 * _EVENTS) / rate
        attained = simulate(scheduler(), load(seconds), seconds=draw(), contract=contract)
        return attained.attainment >= _ATTAINED

    # More than it can serve fits only as long as a long target lets the queue grow.
    most = min(int(decided.rate() / camera_rate), _MOST_CAMERAS)
    low, high = 0, most + 1
    while high - low > 1:  # the most cameras that fit
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
    """1, 2, 4 ... or the allowed sizes, and the cap itself at the end."""
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
    check_results(function(batch), size)  # the first of a size also prepares for it
    taken: list[float] = []
    least, most = _REPEATS
    while len(taken) < least or (len(taken) < most and sum(taken) < _SECONDS_PER_SIZE):
        start = time.perf_counter()
        function(batch)
        taken.append(time.perf_counter() - start)
    return taken


class ResultCountError(TypeError):
    """A function that returned something else than a result for each of its items."""


def check_results(results: Any, size: int) -> None:
    """One result for every item.

    Raises:
        NotOneForEach: if it is no sequence of that length.
    """
    try:
        length = len(results)
    except TypeError:
        raise ResultCountError(
            f"the function must return a list with a result for each of its {size} item(s), "
            f"got {type(results).__name__}"
        ) from None
    if length != size:
        raise ResultCountError(f"the function returned {length} result(s) for {size} item(s)")


def _drawn(
    samples: dict[int, list[float]], scheduler: Scheduler
) -> Callable[[], Callable[[int], float]]:
    """Seconds as noisy as they were measured, the same noise for every load."""
    table = ServiceTable(samples)
    noise = [seconds / table.seconds(size) for size, taken in samples.items() for seconds in taken]

    def draw() -> Callable[[int], float]:
        factors = itertools.cycle(noise)
        return lambda size: scheduler.table.seconds(size) * next(factors)

    return draw
