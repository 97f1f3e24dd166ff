"""The batches that are formed, and wrong use. On gates and barriers, not sleeps."""

from __future__ import annotations

import threading
import time
from concurrent.futures import wait

import pytest
from films import PATIENCE
from gated_models import LONG, Gated, Heard, busy

from rightbatch._errors import UsageError
from rightbatch._serve.engine.batcher import Batcher


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


def test_listeners_hear_of_every_batch(batcher_of):
    model, heard, spent = Gated(), Heard(), []

    def timed(items):
        began = time.monotonic()
        results = model(items)
        spent.append(time.monotonic() - began)
        return results

    batcher = batcher_of(timed, listeners=[heard], sizes=(1, 4, 8))
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
    # Of what ran, the model has seen a part, and an item all: no pause between clocks counts.
    assert first.seconds >= spent[0]
    assert second.seconds >= spent[1]
    assert all(latency >= spent[1] for _, latency, _ in second.items)
    assert second.oldest <= max(latency for _, latency, _ in second.items)
    assert [batch["size"] for batch in batcher.counters.batches()] == [1, 3]


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


@pytest.mark.parametrize("weight", [0, -1, 1e-320, 1e300, 10**400, float("nan")])
def test_a_weight_that_no_turns_can_be_counted_with_is_refused(weight):
    with Batcher(list, 10.0) as batcher, pytest.raises(UsageError, match="weight must be from"):
        batcher.open_stream("one", weight=weight)
