"""The calibration of a batcher on an item: what becomes of it and of the items that came before."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

from films import PATIENCE
from gated_models import LONG, Heard, outcome

from rightbatch._serve.engine import calibration as calibrate
from rightbatch._serve.engine.batcher import Batcher


def test_the_first_item_calibrates_and_is_served_after_it():
    def model(items):
        return [("result", item) for item in items]

    with Batcher(model, LONG, max_batch=4) as batcher:
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
