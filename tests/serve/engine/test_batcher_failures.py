"""Failures of models, items, listeners and the engine: each reaches whom it concerns, alone."""

from __future__ import annotations

import asyncio
import threading

import pytest
from films import PATIENCE
from gated_models import Gated, Heard, busy, outcome

from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher


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


def test_a_listener_that_raises_keeps_nobody_from_his_result(caplog):
    class Broken:
        def batch(self, record):
            raise RuntimeError("batch")

        def dropped(self, stream, cause):
            raise RuntimeError("dropped")

    with Batcher(list, 10.0, calibrate_on=0, listeners=[Broken()]) as batcher:
        assert [batcher.submit(n).result(PATIENCE).result for n in range(5)] == list(range(5))
    assert "a listener or an item's callback failed" in caplog.text


def test_a_defect_of_the_engine_leaves_nobody_waiting(monkeypatch):
    with Batcher(list, 10.0, calibrate_on=0) as batcher:
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        monkeypatch.setattr(
            batcher._scheduler, "next", lambda now: (_ for _ in ()).throw(RuntimeError("defect"))
        )
        with pytest.raises(RuntimeError, match="defect"):
            batcher.submit(1).result(PATIENCE)
        with pytest.raises(LateError):
            batcher.submit(2)
