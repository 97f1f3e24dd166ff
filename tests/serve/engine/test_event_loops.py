"""The batcher awaited in event loops: several at once, ended, cancelled and held back."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest
from films import PATIENCE
from gated_models import LONG, Gated, busy

from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher


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
