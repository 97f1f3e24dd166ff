"""Run an open-loop load: items are sent on a schedule that does not wait for results.

A latency counts from the scheduled time, not from when the item was sent. A load that waits for a
slow server sends less and hides the latency that its users would see ("coordinated omission",
G. Tene). If the generator itself lags behind the schedule, the result says so.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rightbatch._errors import LateError, UsageError
from rightbatch._serve.engine.records import Served
from rightbatch._serve.engine.service_times import quantile
from rightbatch._serve.engine.virtual_clock import Arrival
from rightbatch._serve.load.early_stopping import SHARE, queries_needed

_LAG_WARNING = 0.05  # share of the target that the 99% lag of the generator may reach


class LoadTarget(Protocol):
    """What receives the load: a `Batcher`, or anything with its `put`."""

    @property
    def latency(self) -> float: ...

    def put(
        self,
        stream: str,
        item: Any,
        done: Callable[[Served | BaseException], None],
        arrived: float | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class LoadResult:
    """The outcome of one schedule.

    `target`, `seconds` (duration of sending), `latencies` (of served items, from the scheduled
    time) and `lag` (99% quantile of the generator's delay) are seconds. `scheduled` is the number
    of items in the schedule, `offered` the number sent: fewer if the run was stopped because too
    many were late already.
    """

    target: float
    seconds: float
    scheduled: int
    offered: int
    dropped: dict[str, int]
    lag: float
    latencies: list[float] = field(repr=False)

    @property
    def in_time(self) -> int:
        return sum(latency <= self.target for latency in self.latencies)

    @property
    def attainment(self) -> float:
        """The share of the offered items that was served in time."""
        return self.in_time / self.offered if self.offered else 1.0

    @property
    def rate(self) -> float:
        """Offered items per second."""
        return self.offered / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Items per second that were served in time."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def was_stopped(self) -> bool:
        return self.offered < self.scheduled

    @property
    def lags(self) -> bool:
        """Whether the generator lagged so much that the numbers do not describe the server."""
        return self.lag > _LAG_WARNING * self.target

    def quantile(self, q: float) -> float | None:
        """Return the q-quantile of the latencies of served items, in seconds, if there are any."""
        return quantile(self.latencies, q) if self.latencies else None

    def holds(self, share: float = SHARE) -> bool:
        """Whether the run completed with at least `share` of the items in time."""
        return not self.was_stopped and self.attainment >= share

    def is_sure(self, share: float = SHARE) -> bool:
        """Whether it holds with 99% confidence, by the criterion of MLPerf's early stopping."""
        late = self.offered - self.in_time
        return self.holds(share) and self.offered >= queries_needed(late, share)

    def __str__(self) -> str:
        p50, p99 = self.quantile(0.5), self.quantile(0.99)
        parts = [
            f"{self.rate:.4g}/s offered: {100 * self.attainment:.2f}% within "
            f"{1000 * self.target:g} ms ({self.goodput:.4g}/s)"
        ]
        if p50 is not None and p99 is not None:
            parts.append(f"p50 {1000 * p50:.3g} ms, p99 {1000 * p99:.3g} ms")
        if self.dropped:
            parts.append("dropped " + ", ".join(f"{n} {why}" for why, n in self.dropped.items()))
        if self.was_stopped:
            parts.append(f"stopped after {self.offered} of {self.scheduled}")
        if self.lags:
            parts.append(
                f"the load generator lagged by up to {1000 * self.lag:.3g} ms: "
                "it gets too little CPU"
            )
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "latency_target_ms": 1000 * self.target,
            "seconds": self.seconds,
            "scheduled": self.scheduled,
            "offered": self.offered,
            "in_time": self.in_time,
            "dropped": self.dropped,
            "offered_per_second": self.rate,
            "in_time_per_second": self.goodput,
            "attainment": self.attainment,
            "latency_ms": {
                name: None if (value := self.quantile(q)) is None else 1000 * value
                for name, q in (("p50", 0.5), ("p99", 0.99))
            },
            "generator_lag_ms": 1000 * self.lag,
            "generator_lags": self.lags,
        }


def run(
    loaded: LoadTarget, items: Sequence[Any], arrivals: Sequence[Arrival], *, share: float = 0.0
) -> LoadResult:
    """Send items at the scheduled times, whether or not earlier ones have been answered.

    Return when all items are answered, so that no backlog reaches the next run, or when no answer
    has arrived for a second and ten targets.

    Args:
        loaded: receives the items; its streams are open, or it opens them.
        items: sent in turn.
        arrivals: (seconds from the start, stream), sorted.
        share: stop once fewer than this share can be in time; 0 never stops.
    """
    if not items or not arrivals:
        raise UsageError("a load test needs at least one item and one arrival")
    target = loaded.latency
    allowed_late = len(arrivals) - math.ceil(share * len(arrivals) - 1e-9)
    outcomes = _OutcomeCollector(target)
    lags: list[float] = []
    start = time.monotonic() + 0.02
    for number, (at, stream) in enumerate(arrivals):
        if outcomes.late > allowed_late:
            break
        scheduled = start + at
        if (ahead := scheduled - time.monotonic()) > 0:
            time.sleep(ahead)
        lags.append(time.monotonic() - scheduled)
        done = outcomes.expect(scheduled)
        try:
            loaded.put(stream, items[number % len(items)], done, scheduled)
        except LateError as error:
            done(error)
    outcomes.wait(1.0 + 10 * target)
    dropped, latencies = outcomes.close()
    sent = len(lags)
    # n items have n intervals: add the one after the last item.
    seconds = arrivals[sent - 1][0] + arrivals[-1][0] / len(arrivals)
    return LoadResult(
        target, seconds, len(arrivals), sent, dropped, quantile(lags, SHARE), latencies
    )


class _OutcomeCollector:
    """Collects outcomes from any thread."""

    def __init__(self, target: float) -> None:
        self.late = 0
        self._target = target
        self._lock = threading.Lock()
        self._all_came = threading.Condition(self._lock)
        self._open = 0
        self._answers = 0
        self._dropped: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._closed = False

    def expect(self, scheduled: float) -> Callable[[Served | BaseException], None]:
        with self._lock:
            self._open += 1

        def done(outcome: Served | BaseException) -> None:
            latency = time.monotonic() - scheduled
            with self._lock:
                if self._closed:
                    return
                self._open -= 1
                self._answers += 1
                if isinstance(outcome, LateError):
                    self._dropped[outcome.cause] += 1
                elif isinstance(outcome, BaseException):
                    self._dropped["failed"] += 1
                else:
                    self._latencies.append(latency)
                self.late += isinstance(outcome, BaseException) or latency > self._target
                self._all_came.notify()

        return done

    def wait(self, seconds: float) -> None:
        """Wait until all items are answered, or no answer arrives for `seconds`."""
        with self._lock:
            before = -1
            while self._open and self._answers > before:
                before = self._answers
                self._all_came.wait_for(lambda: not self._open, seconds)

    def close(self) -> tuple[dict[str, int], list[float]]:
        """Stop collecting; return the dropped items by cause, and the latencies of the others."""
        with self._lock:
            self._closed = True
            if self._open:
                self._dropped["unanswered"] += self._open
            return dict(self._dropped), list(self._latencies)
