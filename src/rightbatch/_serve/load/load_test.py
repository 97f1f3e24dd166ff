"""Load tests of an engine: a schedule that does not wait for answers, and the largest one it bears.

A latency counts from the moment that the schedule says, not from when the item was sent: a load
that waits for a slow server sends less of it, and so hides what its users would have seen
("coordinated omission", G. Tene). Where the generator itself lags behind, the result says so.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rightbatch._errors import LateError, UsageError
from rightbatch._serve.engine.records import Served
from rightbatch._serve.engine.service_times import quantile
from rightbatch._serve.engine.virtual_clock import Arrival, cameras

SHARE = 0.99  # of the items in time: what a rate that is borne means
_CONFIDENCE = 0.99  # of MLPerf's early stopping
_LAG = 0.05  # of the target: more than this, 1 in 100 times, is worth a word
_WIDTH = 0.1  # of the guessed rate: the first step of the search

Kind = Literal["poisson", "cameras"]


class Loaded(Protocol):
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
        return self.lag > _LAG * self.target

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


@dataclass(frozen=True)
class LargestRate:
    """The largest rate that held, items a second, and every run on the way to it, in order."""

    rate: float
    share: float
    runs: tuple[tuple[float, LoadResult], ...] = field(repr=False)

    @property
    def last(self) -> LoadResult | None:
        """The run that confirmed it."""
        held = [result for rate, result in self.runs if rate == self.rate]
        return held[-1] if held else None

    @property
    def is_generators(self) -> bool:
        """Whether it may be the load generator's limit, and not the server's: above it the
        generator itself was too late."""
        above = [(rate, result) for rate, result in self.runs if rate > self.rate]
        lowest = min((rate for rate, _ in above), default=0.0)
        return any(result.lags for rate, result in above if rate == lowest)

    def __str__(self) -> str:
        last = self.last
        if last is None:
            return f"no rate was found at which {100 * self.share:g}% are in time"
        text = f"{self.rate:.4g}/s with {100 * self.share:g}% in time, in two runs ({last})"
        if not last.is_sure(self.share):
            needed = queries_needed(last.offered - last.in_time, self.share)
            text += f"; to be sure it takes {needed} items with so few late"
        if self.is_generators:
            text += "; above it the generator itself was late: the server may bear more"
        return text

    def to_dict(self) -> dict[str, Any]:
        last = self.last
        return {
            "items_per_second": self.rate,
            "share": self.share,
            "is_sure": last is not None and last.is_sure(self.share),
            "is_generators": self.is_generators,
            "runs": [{"asked_per_second": rate, **run.to_dict()} for rate, run in self.runs],
            "text": str(self),
        }


def run(
    loaded: Loaded, items: Sequence[Any], arrivals: Sequence[Arrival], *, share: float = 0.0
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
    account = _Account(target)
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


def largest_rate(
    attempt: Callable[[float, int], LoadResult],
    guess: float,
    step: float,
    *,
    share: float = SHARE,
) -> LargestRate:
    """Search the largest rate that holds, in whole steps; it must hold twice.

    From the guess in growing strides until one holds and one fails, then by halves. What was found
    is tried once more with other arrivals, and where that fails the search goes on below it, now
    with both at every rate. What fails is not tried again: the result errs to the low side.

    Args:
        attempt: runs a load of so many items a second; its second argument is the schedule's seed.
        guess: items a second to start at.
        step: the resolution: the rate of a camera, or a per cent or two of the guess.
        share: of the items in time.
    """
    if guess <= 0 or step <= 0:
        raise UsageError(f"a guess and a step are above 0, got {guess} and {step}")
    _check(share)
    runs: list[tuple[float, LoadResult]] = []
    known: dict[tuple[int, int], bool] = {}

    def holds(steps: int, seed: int) -> bool:
        if (steps, seed) not in known:
            result = attempt(steps * step, seed)
            runs.append((steps * step, result))
            known[steps, seed] = result.holds(share)
        return known[steps, seed]

    at = max(1, round(guess / step))
    found = _largest(lambda steps: holds(steps, 0), at, max(1, round(_WIDTH * at)))
    if found:
        found = _largest(
            lambda steps: holds(steps, 1) and holds(steps, 0), found, 1, failed=found + 1
        )
    return LargestRate(found * step, share, tuple(runs))


def _largest(holds: Callable[[int], bool], at: int, stride: int, failed: int = 0) -> int:
    """The largest whole number that holds; 0 where even 1 does not.

    In growing strides until one holds and one fails, then by halves. `failed` is one of which that
    is known; 0: none.
    """
    held, above = 0, failed
    while above != 1 and (not held or not above or above - held > 1):
        if holds(at):
            held = at
        else:
            above = at
        if held and above:
            at = (held + above) // 2
        else:
            at = max(1, at + (-stride if above else stride))
            stride *= 2
    return held


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


def queries_needed(late: int, share: float = SHARE) -> int:
    """Items of which so few are late that 99 times in 100 not more than 1 - `share` would be.

    The criterion of MLPerf's early stopping (`Server`: 459 queries with none late). It takes items
    for independent, which those of one batch are not: the least that is needed.
    """
    _check(share)
    low, high = late, late + 1
    while _at_most(late, high, 1 - share) > 1 - _CONFIDENCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _at_most(late, middle, 1 - share) > 1 - _CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _check(share: float) -> None:
    if not 0 < share < 1:  # no number of items can show that none would be late
        raise UsageError(f"a share of the items lies between 0 and 1, got {share}")


def _at_most(count: int, trials: int, chance: float) -> float:
    """The probability of at most so many successes, binomial."""
    choose = math.lgamma(trials + 1)
    return sum(
        math.exp(
            choose
            - math.lgamma(k + 1)
            - math.lgamma(trials - k + 1)
            + k * math.log(chance)
            + (trials - k) * math.log1p(-chance)
        )
        for k in range(min(count, trials) + 1)
    )


class _Account:
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
