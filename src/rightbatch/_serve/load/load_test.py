"""Load tests of an engine: a schedule that does not wait for answers, and the largest one it bears.

A latency counts from the moment that the schedule says, not from when the item was sent: a load
that waits for a slow server sends less of it, and so hides what its users would have seen
("coordinated omission", G. Tene). Where the generator itself lags behind, the result says so.
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
    """What a load is put on: a `Batcher`, or anything with its `put`."""

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
    """What became of one schedule.

    `target`, `seconds` (how long was sent), `latencies` (of what was served, from the scheduled
    moment) and `lag` (by how much the generator was late, in 99 of 100 cases not more) are seconds.
    `scheduled` is what the schedule had, `offered` what was sent of it: less where it was stopped,
    since too much was late already.
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
        """The share of what was offered that was served in time."""
        return self.in_time / self.offered if self.offered else 1.0

    @property
    def rate(self) -> float:
        """Items a second that were offered."""
        return self.offered / self.seconds if self.seconds else 0.0

    @property
    def goodput(self) -> float:
        """Items a second that were served in time."""
        return self.in_time / self.seconds if self.seconds else 0.0

    @property
    def was_stopped(self) -> bool:
        return self.offered < self.scheduled

    @property
    def lags(self) -> bool:
        """Whether the generator itself was too late for these numbers to be the server's."""
        return self.lag > _LAG_WARNING * self.target

    def quantile(self, q: float) -> float | None:
        """Of the latencies of what was served, seconds."""
        return quantile(self.latencies, q) if self.latencies else None

    def holds(self, share: float = SHARE) -> bool:
        """Whether so much was in time."""
        return not self.was_stopped and self.attainment >= share

    def is_sure(self, share: float = SHARE) -> bool:
        """Whether it holds for more than these items, by the count of MLPerf's early stopping."""
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
                f"the generator itself was up to {1000 * self.lag:.3g} ms late: "
                "it has too little of this machine"
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
    """Put items at the moments of a schedule, whether or not the ones before are answered.

    Args:
        loaded: where to; its streams are open, or it opens them.
        items: taken in turn.
        arrivals: seconds from the start, in order, and their streams.
        share: stop as soon as it is certain that less than this is in time; 0 never stops.

    It returns when all is answered, so that a backlog is not the next run's, or when a second and
    ten targets have brought no answer.
    """
    if not items or not arrivals:
        raise UsageError("a load needs at least one item and one arrival")
    target = loaded.latency
    bearable = len(arrivals) - math.ceil(share * len(arrivals) - 1e-9)
    account = _OutcomeCollector(target)
    lags: list[float] = []
    start = time.monotonic() + 0.02
    for number, (at, stream) in enumerate(arrivals):
        if account.late > bearable:
            break
        scheduled = start + at
        if (ahead := scheduled - time.monotonic()) > 0:
            time.sleep(ahead)
        lags.append(time.monotonic() - scheduled)
        done = account.expect(scheduled)
        try:
            loaded.put(stream, items[number % len(items)], done, scheduled)
        except LateError as error:
            done(error)
    account.wait(1.0 + 10 * target)
    dropped, latencies = account.close()
    sent = len(lags)
    # The last interval counts as well: n items have n of them.
    seconds = arrivals[sent - 1][0] + arrivals[-1][0] / len(arrivals)
    return LoadResult(
        target, seconds, len(arrivals), sent, dropped, quantile(lags, SHARE), latencies
    )


class _OutcomeCollector:
    """Outcomes as they come, from whatever thread."""

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
        """Until all came, or none came for so long."""
        with self._lock:
            before = -1
            while self._open and self._answers > before:
                before = self._answers
                self._all_came.wait_for(lambda: not self._open, seconds)

    def close(self) -> tuple[dict[str, int], list[float]]:
        """What was dropped and why, and the latencies of the rest; nothing is heard any more."""
        with self._lock:
            self._closed = True
            if self._open:
                self._dropped["unanswered"] += self._open
            return dict(self._dropped), list(self._latencies)
