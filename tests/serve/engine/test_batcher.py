"""The engine and its two faces: what becomes of every item. On gates and barriers, not sleeps."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from concurrent.futures import Future, wait
from types import SimpleNamespace

import pytest
from films import PATIENCE, wait_for

from rightbatch._errors import LateError, UsageError
from rightbatch._serve.engine import calibration as calibrate
from rightbatch._serve.engine import engine
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.calibration import Calibration
from rightbatch._serve.engine.records import Served

LONG = 1000.0  # seconds: a target that no machine is too slow for


class Gated:
    """A model that answers once it is let, and remembers its batches."""

    def __init__(self, think=lambda item: ("result", item), most=None):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self._think, self._most = think, most

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.go.wait(PATIENCE)
        if self._most is not None and len(items) > self._most:
            raise MemoryError
        return [self._think(item) for item in items]

    @property
    def items(self):
        return [item for batch in self.batches for item in batch]


@pytest.fixture
def quick_conclusion(monkeypatch):
    """What a calibration promises takes a second to work out; few of these tests ask for it."""

    def estimate_capacity(samples, stopped_by, latency, **options):
        return Calibration(latency, samples, stopped_by, max(samples), 1.0, 1.0, 0, 10.0, 0.0)

    monkeypatch.setattr(calibrate, "estimate_capacity", estimate_capacity)


@pytest.fixture
def calibrated(monkeypatch, quick_conclusion):
    """Makes every calibration find these seconds, at once."""

    def found(samples):
        def measure(function, item, latency, **options):
            return {size: [seconds] * 3 for size, seconds in samples.items()}, "latency"

        monkeypatch.setattr(calibrate, "measure", measure)

    found({size: 1e-3 * size + 4e-3 for size in (1, 2, 4, 8, 16, 32, 64)})
    return found


@pytest.fixture
def batcher_of(calibrated):
    """Makes batchers, calibrated, and closes them."""
    made = []

    def make(model, latency=LONG, **options):
        options.setdefault("calibrate_on", "first")
        made.append((model, Batcher(model, latency, **options)))
        return made[-1][1]

    yield make
    for model, batcher in made:
        if isinstance(model, Gated):
            model.go.set()
        batcher.close(PATIENCE)


def busy(batcher, model, stream="busy"):
    """Gives the model something to do, and returns once it does it."""
    future = batcher.submit("busy", stream=stream)
    assert model.entered.acquire(timeout=PATIENCE)
    return future


def outcome(future: Future):
    error = future.exception(PATIENCE)
    return error if error is not None else future.result()


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self):
        self.records, self.drops = [], []

    def batch(self, record):
        self.records.append(record)

    def dropped(self, stream, cause):
        self.drops.append((stream, cause))


# -- batches


def test_what_came_while_a_batch_ran_goes_together_and_says_why(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    first = busy(batcher, model)
    futures = [batcher.submit(number) for number in range(5)]
    assert batcher.waiting == 5
    assert batcher.oldest() >= 0
    model.go.set()
    served = [future.result(PATIENCE) for future in futures]
    assert model.batches == [["busy"], [0, 1, 2, 3, 4]]
    assert [one.result for one in served] == [("result", number) for number in range(5)]
    assert {(one.batch_size, one.reason, one.in_time) for one in served} == {
        (5, "all waiting items", True)
    }
    assert first.result(PATIENCE).batch_size == 1
    assert batcher.waiting == 0
    assert batcher.oldest() == 0.0


def test_an_idle_engine_does_not_wait_for_more(batcher_of):
    batcher = batcher_of(lambda items: items)
    assert [batcher.submit(n).result(PATIENCE).batch_size for n in range(3)] == [1, 1, 1]


def test_order_within_a_stream_is_kept(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    busy(batcher, model)
    futures = [batcher.submit((n % 3, n), stream=str(n % 3)) for n in range(300)]
    model.go.set()
    wait(futures, PATIENCE)
    for stream in range(3):
        mine = [item[1] for item in model.items if item[0] == stream]
        assert mine == list(range(stream, 300, 3))


def test_max_batch_and_sizes_are_kept(batcher_of):
    for options, most in (({"max_batch": 7}, 7), ({"sizes": (2, 6)}, 6)):
        model = Gated()
        batcher = batcher_of(model, **options)
        busy(batcher, model)
        futures = [batcher.submit(n) for n in range(40)]
        model.go.set()
        wait(futures, PATIENCE)
        assert max(map(len, model.batches)) == most
        assert batcher.largest_batch == most


def test_threads_that_submit_at_once_get_their_own_results(batcher_of):
    batcher = batcher_of(lambda items: [item**2 for item in items])
    barrier = threading.Barrier(8)
    wrong = []

    def many(start):
        barrier.wait(PATIENCE)
        futures = [(n, batcher.submit(n)) for n in range(start, start + 100)]
        wrong.extend(n for n, future in futures if future.result(PATIENCE).result != n**2)

    threads = [threading.Thread(target=many, args=(1000 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert wrong == []
    assert batcher.close(PATIENCE) == 0
    assert batcher.counters.total() == {"served": 800, "in_time": 800, "dropped": {}}


def test_a_latency_counts_from_the_arrival(batcher_of):
    batcher = batcher_of(lambda items: items)
    served = batcher.submit("item", arrived=time.monotonic() - 5).result(PATIENCE)
    assert 5 <= served.latency < LONG
    assert served.in_time


def test_old_items_of_one_stream_do_not_make_the_batches_of_all_smaller(batcher_of):
    batcher = batcher_of(lambda items: items, latency=100.0)
    batcher.open_stream("stalled", contract="freshest")
    for _ in range(40):
        batcher.submit("frame", stream="stalled", arrived=time.monotonic() - 1e6)
    for _ in range(20):  # so many batches and it looks at what the target allows
        batcher.submit("item").result(PATIENCE)
    assert batcher.largest_batch == 64


# -- failures


def test_a_bad_item_fails_alone(batcher_of):
    def think(item):
        if item == 3:
            raise ValueError("3 cannot be read")
        return item

    model, heard = Gated(think), Heard()
    batcher = batcher_of(model, listeners=[heard])
    busy(batcher, model)
    futures = [batcher.submit(n) for n in range(8)]
    model.go.set()
    outcomes = [outcome(future) for future in futures]
    assert isinstance(outcomes.pop(3), ValueError)
    assert [one.result for one in outcomes] == [0, 1, 2, 4, 5, 6, 7]
    batcher.close(PATIENCE)
    assert heard.drops == [("", "failed")]
    assert batcher.counters.total()["dropped"] == {"failed": 1}


def test_a_batch_that_runs_out_of_memory_is_halved_and_so_are_those_after_it(batcher_of):
    model = Gated(most=4)
    batcher = batcher_of(model)
    busy(batcher, model)
    futures = [batcher.submit(n) for n in range(12)]
    model.go.set()
    assert [future.result(PATIENCE).result[1] for future in futures] == list(range(12))
    assert [len(batch) for batch in model.batches] == [1, 12, 6, 3, 3, 6, 3, 3]
    assert batcher.largest_batch == 3


def test_a_later_half_that_fails_does_not_raise_the_cap_again(batcher_of):
    # A neighbour takes the memory, and gives it back: 12, 6 and 3 fail, 3 does not, 6 does.
    fails = iter([False, True, True, True, False, False, False, True, False, False])

    def model(items):
        if next(fails):
            raise MemoryError
        return items

    gated = Gated()

    def gated_model(items):
        gated(items)
        return model(items)

    batcher = batcher_of(gated_model)
    busy(batcher, gated)
    futures = [batcher.submit(n) for n in range(12)]
    gated.go.set()
    assert [future.result(PATIENCE).result for future in futures] == list(range(12))
    assert batcher.largest_batch == 2


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (lambda items: items[:-1], r"returned \d result\(s\) for \d item"),
        (lambda items: None, "must return a list with one result per item .* got NoneType"),
        (lambda items: (item for item in items), "got generator"),
    ],
)
def test_results_that_are_wrong_in_number_are_a_clear_error(batcher_of, results, message):
    batcher = batcher_of(results)
    for _ in range(2):
        with pytest.raises(TypeError, match=message):
            batcher.submit("item").result(PATIENCE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration, RuntimeError])
def test_whatever_a_model_raises_reaches_who_asked_and_it_goes_on(batcher_of, error):
    def model(items):
        if items == ["bad"]:
            raise error
        return items

    batcher = batcher_of(model)
    assert isinstance(outcome(batcher.submit("bad")), error)
    assert batcher.submit("good").result(PATIENCE).result == "good"


def test_stop_iteration_reaches_a_coroutine_as_an_error_it_can_hold(batcher_of):
    batcher = batcher_of(lambda items: [next(iter(())) for _ in items])

    async def ask():
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await asyncio.wait_for(batcher("item"), PATIENCE)

    asyncio.run(ask())


# -- calibration


def test_the_first_item_calibrates_and_is_served_after_it():
    def model(items):
        return [("result", item) for item in items]

    with Batcher(model, 10.0, max_batch=4) as batcher:
        assert batcher.calibration is None
        assert batcher.submit("first").result(PATIENCE).result == ("result", "first")
        assert batcher.calibration is not None
        assert set(batcher.calibration.samples) == {1, 2, 4}
        assert batcher.calibration.stopped_by in {"max_batch", "no gain"}
        json.dumps(batcher.calibration.to_dict())


def test_memory_that_ends_a_calibration_caps_the_batches(quick_conclusion, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(calibrate, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def model(items):
        if len(items) > 3:
            raise MemoryError
        clock.now += 0.002  # whatever their number
        return items

    with Batcher(model, LONG, calibrate_on="item") as batcher:
        assert batcher.calibration is not None
        assert batcher.calibration.stopped_by == "memory"
        assert batcher.largest_batch == 2


def test_what_came_before_the_calibration_is_never_late(calibrated, monkeypatch):
    calibrating, go = threading.Event(), threading.Event()
    measure = calibrate.measure

    def slow(*args, **options):
        calibrating.set()
        assert go.wait(PATIENCE)
        return measure(*args, **options)

    monkeypatch.setattr(calibrate, "measure", slow)
    calibrated_late = Batcher(lambda items: items, 1e-3)
    with calibrated_late as batcher:
        futures = [batcher.submit(n) for n in range(50)]
        assert calibrating.wait(PATIENCE)
        time.sleep(0.002)
        go.set()
        assert [future.result(PATIENCE).result for future in futures] == list(range(50))


def test_an_item_that_cannot_be_calibrated_on_fails_and_the_next_one_is_tried(quick_conclusion):
    def model(items):
        if "bad" in items:
            raise ValueError("bad")
        return items

    with Batcher(model, LONG, max_batch=2) as batcher:
        batcher.open_stream("file", contract="every", depth=1)
        put = []

        def bring():  # each must wait for room, also where it came by a failure
            put.extend(batcher.submit(n, stream="file") for n in ("bad", "bad", "bad", "good"))

        bringer = threading.Thread(target=bring)
        bringer.start()
        bringer.join(PATIENCE)
        assert not bringer.is_alive()
        outcomes = [outcome(future) for future in put]
        assert [isinstance(one, ValueError) for one in outcomes] == [True] * 3 + [False]
        assert outcomes[3].result == "good"


def test_an_item_that_was_replaced_while_it_was_calibrated_on_has_one_outcome(quick_conclusion):
    calibrating, go = threading.Event(), threading.Event()

    def model(items):
        if "old" in items:
            calibrating.set()
            assert go.wait(PATIENCE)
            raise ValueError("old")
        return items

    heard, outcomes = Heard(), []
    with Batcher(model, LONG, max_batch=2, listeners=[heard]) as batcher:
        batcher.open_stream("camera", contract="freshest")
        batcher.put("camera", "old", outcomes.append)
        assert calibrating.wait(PATIENCE)
        new = batcher.submit("new", stream="camera")
        go.set()
        assert new.result(PATIENCE).result == "new"
    assert [getattr(one, "cause", one) for one in outcomes] == ["replaced"]
    assert heard.drops == [("camera", "replaced")]


# -- loss contracts


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


def test_deadline_refuses_what_would_be_late_and_says_when_to_come_again(
    batcher_of, calibrated, monkeypatch
):
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(
        engine,
        "time",
        SimpleNamespace(
            monotonic=lambda: clock.now, time=time.time, perf_counter=time.perf_counter
        ),
    )
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


def test_deadline_drops_what_has_become_late(batcher_of, calibrated, monkeypatch):
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(
        engine,
        "time",
        SimpleNamespace(
            monotonic=lambda: clock.now, time=time.time, perf_counter=time.perf_counter
        ),
    )
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


def test_listeners_hear_of_every_batch(batcher_of):
    model, heard = Gated(), Heard()
    batcher = batcher_of(model, listeners=[heard], sizes=(1, 4, 8))
    busy(batcher, model)
    for number in range(3):
        batcher.submit(number, stream="camera")
    model.go.set()
    assert batcher.close(PATIENCE) == 0
    first, second = heard.records
    assert (first.size, first.ran_as, first.items[0][0]) == (1, 1, "busy")
    assert (second.size, second.ran_as, second.reason) == (3, 4, "all waiting items")
    assert [stream for stream, _, _ in second.items] == ["camera"] * 3
    assert second.waiting == 0
    assert all(latency >= second.seconds for _, latency, _ in second.items)
    assert second.oldest <= max(latency for _, latency, _ in second.items)
    assert [batch["size"] for batch in batcher.counters.batches()] == [1, 3]


# -- event loops


def test_two_event_loops_await_at_once(batcher_of):
    batcher = batcher_of(lambda items: [item + 1 for item in items])
    barrier = threading.Barrier(2)
    results = {}

    async def many(start):
        barrier.wait(PATIENCE)
        return await asyncio.gather(*(batcher(n) for n in range(start, start + 200)))

    def run(start):
        results[start] = asyncio.run(asyncio.wait_for(many(start), PATIENCE))

    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == {start: list(range(start + 1, start + 201)) for start in (0, 1000)}


def test_an_event_loop_that_has_ended_is_forgotten(batcher_of):
    batcher = batcher_of(lambda items: items)
    loops = []

    async def ask():
        loops.append(weakref.ref(asyncio.get_running_loop()))
        return await batcher("item")

    for _ in range(3):
        asyncio.run(ask())
    gc.collect()
    assert [loop() for loop in loops[:2]] == [None, None]


def test_a_coroutine_that_is_cancelled_leaves_the_others_alone(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    troubles = []

    async def ask():
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: troubles.append(context)
        )
        tasks = [asyncio.create_task(batcher(n)) for n in range(4)]
        await asyncio.sleep(0)  # all of them are in the queue now
        tasks[1].cancel()
        tasks[2].cancel()
        model.go.set()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)

    outcomes = asyncio.run(ask())
    assert [isinstance(one, asyncio.CancelledError) for one in outcomes] == [0, 1, 1, 0]
    assert (outcomes[0], outcomes[3]) == (("result", 0), ("result", 3))
    assert troubles == []


def test_a_future_that_is_cancelled_leaves_the_others_alone(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    busy(batcher, model)
    futures = [batcher.submit(n) for n in range(3)]
    assert futures[1].cancel()
    model.go.set()
    assert futures[2].result(PATIENCE).result == ("result", 2)
    assert futures[0].result(PATIENCE).result == ("result", 0)


def test_a_loop_that_ended_before_its_answers_harms_nobody(batcher_of):
    model = Gated()
    batcher = batcher_of(model)

    async def give_up():
        await asyncio.wait_for(batcher("item"), 0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    later = batcher.submit("later")
    model.go.set()
    assert later.result(PATIENCE).result == ("result", "later")


def test_backpressure_holds_a_coroutine_and_not_its_loop(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    batcher.open_stream("file", contract="every", depth=1)
    busy(batcher, model)

    async def ask():
        tasks = [asyncio.create_task(batcher(n, stream="file")) for n in range(4)]
        for _ in range(5):
            await asyncio.sleep(0.001)  # the loop goes round
        assert not any(task.done() for task in tasks)
        model.go.set()
        return await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    assert asyncio.run(ask()) == [("result", n) for n in range(4)]


def test_a_refusal_is_raised_where_it_is_awaited(batcher_of, calibrated):
    calibrated({1: 2 * LONG})
    batcher = batcher_of(lambda items: items)

    async def ask():
        with pytest.raises(LateError) as error:
            await batcher("item")
        return error.value

    assert asyncio.run(ask()).retry_after == pytest.approx(LONG)


# -- the end


def test_close_finishes_what_was_accepted(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    busy(batcher, model)
    futures = [batcher.submit(n) for n in range(100)]
    model.go.set()
    assert batcher.close(PATIENCE) == 0
    assert all(future.done() and isinstance(outcome(future), Served) for future in futures)
    with pytest.raises(LateError, match="closing") as error:
        batcher.submit("item")
    assert error.value.cause == "closing"
    assert batcher.close() == 0


def test_close_says_what_was_left_and_the_batch_that_runs_still_ends(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    running = busy(batcher, model)
    futures = [batcher.submit(n) for n in range(3)]
    assert batcher.close(timeout=0.01) == 4
    for future in futures:
        error = outcome(future)
        assert isinstance(error, LateError)
        assert error.cause == "closing"
    model.go.set()
    assert running.result(PATIENCE).result == ("result", "busy")
    assert model.items == ["busy"]


def test_close_wakes_who_waits_for_room(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    batcher.open_stream("file", contract="every", depth=1)
    busy(batcher, model)
    batcher.submit(0, stream="file")
    causes = []

    def bring():
        try:
            batcher.submit(1, stream="file")
        except LateError as error:
            causes.append(error.cause)

    bringer = threading.Thread(target=bring)
    bringer.start()
    batcher.close(timeout=0.01)
    bringer.join(PATIENCE)
    assert causes == ["closing"]


def test_closing_a_stream_drops_what_waits_there_only(batcher_of):
    model = Gated()
    batcher = batcher_of(model)
    batcher.open_stream("one")
    batcher.open_stream("two")
    busy(batcher, model)
    gone = batcher.submit(1, stream="one")
    stays = batcher.submit(2, stream="two")
    batcher.close_stream("one")
    error = outcome(gone)
    assert isinstance(error, LateError)
    assert error.cause == "closing"
    model.go.set()
    assert stays.result(PATIENCE).result == ("result", 2)


def test_a_batcher_that_nobody_used_closes():
    assert Batcher(lambda items: items, "50ms").close() == 0


def test_with_blocks_close_it(batcher_of):
    batcher = batcher_of(lambda items: items)
    with batcher as same:
        assert same is batcher
    with pytest.raises(LateError):
        batcher.submit("item")

    async def use():
        async with batcher_of(lambda items: items) as other:
            assert await other("item") == "item"
        with pytest.raises(LateError):
            await other("item")

    asyncio.run(use())


# -- wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", 0.1), "takes a function on lists, got str"),
        ((len, "soon"), "not a duration"),
        ((len, 0), "not a duration"),
    ],
)
def test_what_is_no_batcher_is_said(arguments, message):
    with pytest.raises(UsageError, match=message):
        Batcher(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": []}, "sizes must be integers of at least 1"),
        ({"sizes": [0, 4]}, "sizes must be integers of at least 1"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"sizes": [4, 8], "max_batch": 2}, "no batch size of the model is at most max_batch=2"),
    ],
)
def test_limits_that_cannot_be_meant_are_said(options, message):
    with pytest.raises(UsageError, match=message):
        Batcher(len, 0.1, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contract": "some"}, "unknown contract 'some'; choose one of every, freshest, deadline"),
        ({"weight": 0}, "weight must be from 0.001 to 1000, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
    ],
)
def test_streams_that_cannot_be_meant_are_said(options, message):
    with pytest.raises(UsageError, match=message):
        Batcher(len, 0.1).open_stream("camera", **options)


def test_streams_are_known_by_their_names():
    batcher = Batcher(len, 0.1)
    batcher.open_stream("camera")
    with pytest.raises(UsageError, match="'camera' exists already"):
        batcher.open_stream("camera")
    with pytest.raises(UsageError, match="no stream 'kamera'; open streams: camera"):
        batcher.close_stream("kamera")


def test_a_listener_that_raises_keeps_nobody_from_his_result(caplog):
    class Broken:
        def batch(self, record):
            raise RuntimeError("batch")

        def dropped(self, stream, cause):
            raise RuntimeError("dropped")

    with Batcher(list, 10.0, calibrate_on=0, listeners=[Broken()]) as batcher:
        assert [batcher.submit(n).result(20).result for n in range(5)] == list(range(5))
    assert "a listener or an item's callback failed" in caplog.text


def test_a_defect_of_the_engine_leaves_nobody_waiting(monkeypatch):
    with Batcher(list, 10.0, calibrate_on=0) as batcher:
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        monkeypatch.setattr(
            batcher._scheduler, "next", lambda now: (_ for _ in ()).throw(RuntimeError("defect"))
        )
        with pytest.raises(RuntimeError, match="defect"):
            batcher.submit(1).result(20)
        with pytest.raises(LateError):
            batcher.submit(2)


@pytest.mark.parametrize("weight", [0, -1, 1e-320, 1e300, 10**400, float("nan")])
def test_a_weight_that_no_turns_can_be_counted_with_is_refused(weight):
    with Batcher(list, 10.0) as batcher, pytest.raises(UsageError, match="weight must be from"):
        batcher.open_stream("one", weight=weight)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration("x")])
def test_what_would_end_an_event_loop_comes_as_an_error_of_the_item(error):
    def fails(items):
        if 1 in items:
            raise error
        return list(items)

    async def ask(batcher):
        with pytest.raises(RuntimeError, match=type(error).__name__):
            await batcher(1)
        return await batcher(2)

    with Batcher(fails, 10.0, calibrate_on=0) as batcher:
        assert asyncio.run(ask(batcher)) == 2


def test_coroutines_that_share_a_stream_of_every_keep_its_order():
    seen = []

    def note(items):
        seen.extend(items)
        return list(items)

    async def ask(batcher):
        batcher.open_stream("file", contract="every", depth=2)
        await asyncio.gather(*(batcher(n, stream="file") for n in range(1, 101)))

    with Batcher(note, 10.0, calibrate_on=0) as batcher:
        seen.clear()
        asyncio.run(ask(batcher))
    assert seen == list(range(1, 101))
