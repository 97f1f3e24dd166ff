"""What is counted of every stream."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rightbatch._serve.engine import counters
from rightbatch._serve.engine.counters import Counters
from rightbatch._serve.engine.records import BatchRecord


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(counters, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def record(*items, at=1.0):
    return BatchRecord(at, len(items), len(items), 0.005, "all waiting items", 0, 0.0, items)


@pytest.mark.parametrize("rate", [2, 40, 3000])
def test_the_rate_is_that_of_the_last_seconds_however_many_they_were(clock, rate):
    counted = Counters()
    counted.open("camera")
    for _ in range(10 * rate):
        clock.now += 1 / rate
        counted.batch(record(("camera", 0.01, True)))
    assert counted.of("camera")["frames_per_second"] == pytest.approx(rate, rel=0.11)
    clock.now += 6
    assert counted.of("camera")["frames_per_second"] == 0


def test_latencies_are_in_milliseconds_and_of_each_stream(clock):
    counted = Counters()
    counted.open("one")
    counted.open("two")
    counted.batch(record(*(("one", 0.001 * n, True) for n in range(1, 102)), ("two", 9.0, False)))
    assert counted.of("one")["latency_ms"] == {"p50": 51.0, "p99": 100.0}
    assert counted.of("two")["latency_ms"] == {"p50": 9000.0, "p99": 9000.0}
    assert counted.of("none")["latency_ms"] == {"p50": None, "p99": None}


def test_all_are_the_sum_of_the_streams(clock):
    counted = Counters()
    for name in ("one", "two", "three"):
        counted.open(name)
    counted.batch(record(("one", 0.01, True), ("two", 0.9, False)))
    counted.dropped("one", "late")
    counted.dropped("three", "replaced")
    counted.dropped("three", "late")
    assert counted.total() == {"served": 2, "in_time": 1, "dropped": {"late": 2, "replaced": 1}}


def test_the_last_batches_are_kept_oldest_first(clock):
    counted = Counters()
    for number in range(300):
        counted.batch(record(("one", 0.01, True), at=float(number)))
    batches = counted.batches()
    assert [batch["at"] for batch in batches] == [float(n) for n in range(100, 300)]
    assert batches[0]["ms"] == 5.0


def test_what_a_closed_stream_had_stays_in_the_total_and_nothing_more_is_kept_of_it(clock):
    counted = Counters()
    counted.open("one")
    counted.batch(record(("one", 0.01, True)))
    counted.close("one")
    counted.batch(record(("one", 0.9, False)))  # was on its way
    counted.dropped("one", "closing")
    assert "one" not in counted
    assert counted.of("one")["served"] == 0
    assert counted.total() == {"served": 2, "in_time": 1, "dropped": {"closing": 1}}
