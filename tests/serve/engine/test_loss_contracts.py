"""What each loss contract drops, refuses or holds back: freshest, every and deadline."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from films import PATIENCE, wait_for
from gated_models import LONG, Gated, Heard, busy, outcome

from rightbatch._errors import LateError
from rightbatch._serve.engine import engine


def test_freshest_keeps_the_newest_and_tells_the_others(batcher_of):
    model, heard = Gated(), Heard()
    batcher = batcher_of(model, listeners=[heard])
    batcher.open_stream("camera", contract="freshest")
    busy(batcher, model)
    futures = [batcher.submit(n, stream="camera") for n in range(5)]
    for future in futures[:-1]:
        error = outcome(future)
        assert isinstance(error, LateError)
        assert error.cause == "replaced"
    model.go.set()
    assert futures[-1].result(PATIENCE).result == ("result", 4)
    assert heard.drops == [("camera", "replaced")] * 4


def test_every_makes_who_brings_wait_and_loses_nothing(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    batcher.open_stream("file", contract="every", depth=2)
    busy(batcher, model)
    brought, futures = [], []

    def bring():
        for number in range(20):
            futures.append(batcher.submit(number, stream="file"))
            brought.append(number)

    bringer = threading.Thread(target=bring)
    bringer.start()
    wait_for(lambda: len(brought) == 2)
    # It is in the third `submit` now, or soon, and stays there.
    assert not model.entered.acquire(timeout=0.05)
    assert batcher.waiting == len(brought) == 2
    model.go.set()
    bringer.join(PATIENCE)
    assert [future.result(PATIENCE).result[1] for future in futures] == list(range(20))
    assert model.items[1:] == list(range(20))
    assert batcher.counters.of("file")["dropped"] == {}


def test_every_does_not_drop_what_is_late(batcher_of):
    batcher = batcher_of(lambda items: items, latency=1e-3)
    batcher.open_stream("file", contract="every")
    old = time.monotonic() - 10
    futures = [batcher.submit(n, stream="file", arrived=old) for n in range(50)]
    assert [future.result(PATIENCE).in_time for future in futures] == [False] * 50
    batcher.close(PATIENCE)
    counted = batcher.counters.of("file")
    assert (counted["served"], counted["in_time"], counted["dropped"]) == (50, 0, {})


@pytest.fixture
def clock(monkeypatch):
    """The engine's time, which a test sets."""
    clock = SimpleNamespace(now=50.0)
    stand_in = SimpleNamespace(
        monotonic=lambda: clock.now, time=time.time, perf_counter=time.perf_counter
    )
    monkeypatch.setattr(engine, "time", stand_in)
    return clock


def test_deadline_refuses_what_would_be_late_and_says_when_to_come_again(
    batcher_of, calibrated, clock
):
    calibrated({1: 400.0})  # seconds, of a target of 1000
    model, heard = Gated(), Heard()
    batcher = batcher_of(model, listeners=[heard])
    busy(batcher, model, stream="")
    second = batcher.submit("second")  # ready after 800
    with pytest.raises(LateError, match="is predicted to be late") as refused:
        batcher.submit("third")
    assert refused.value.cause == "refused"
    assert refused.value.retry_after == pytest.approx(200)
    assert heard.drops == [("", "refused")]
    clock.now += 0.99 * 200
    with pytest.raises(LateError) as again:
        batcher.submit("third")
    assert again.value.retry_after == pytest.approx(2)
    clock.now += 0.01 * 200 + 1e-6
    third = batcher.submit("third")
    clock.now = 50 + 400.0
    model.go.set()
    assert second.result(PATIENCE).result == ("result", "second")
    assert third.result(PATIENCE).in_time


def test_deadline_drops_what_has_become_late(batcher_of, calibrated, clock):
    calibrated({1: 100.0})
    model = Gated()
    batcher = batcher_of(model)
    busy(batcher, model)
    waiting = batcher.submit("waits")
    clock.now += 950  # the model took far longer than it should
    later = batcher.submit("later")
    model.go.set()
    error = outcome(waiting)
    assert isinstance(error, LateError)
    assert (error.cause, error.retry_after) == ("late", LONG)
    assert later.result(PATIENCE).in_time


def test_a_device_that_is_free_early_refuses_nobody_for_it(batcher_of, calibrated):
    calibrated({1: 600.0})  # of a target of 1000: the next would be late, were it so
    batcher = batcher_of(lambda items: items)
    for number in range(3):
        batcher.submit(number).result(PATIENCE)
        wait_for(lambda: not batcher._running)


def test_a_deadline_stream_with_a_depth_is_full_beyond_it(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    batcher.open_stream("short", depth=2)
    busy(batcher, model)
    for number in range(2):
        batcher.submit(number, stream="short")
    with pytest.raises(LateError, match="full") as full:
        batcher.submit(2, stream="short")
    assert full.value.cause == "full"
