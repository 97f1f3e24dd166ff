"""Closing a batcher or a stream: what was accepted is finished, or its caller is told."""

from __future__ import annotations

import asyncio
import threading

import pytest
from films import PATIENCE
from gated_models import Gated, busy, outcome

from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import Served


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
