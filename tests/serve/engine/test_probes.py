"""What was slow is tried again: no slow spell and no first picture ends the serving for good."""

from __future__ import annotations

import time
from typing import Any

import pytest
from films import PATIENCE, wait_for
from gated_models import Gated
from servers import line_table

import rightbatch as rb
from rightbatch._serve.engine.attainment import LEAST, Attainment
from rightbatch._serve.engine.queues import NEVER, Item
from rightbatch._serve.engine.scheduler import Scheduler

LATENCY = 0.1


def put(scheduler: Scheduler, now: float) -> None:
    scheduler.put(Item("a", None, now, NEVER))


def spell(scheduler: Scheduler, now: float, seconds: float) -> None:
    """Batches of 1 that took so long."""
    for _ in range(31):
        scheduler.observe(1, seconds, now=now)


class TestTheScheduler:
    def test_runs_an_item_that_it_predicts_to_be_late_when_nothing_has_run(self) -> None:
        scheduler = Scheduler(line_table(1e-3, 4e-3), LATENCY)
        scheduler.open("a")
        spell(scheduler, 10.0, 0.25)
        put(scheduler, 10.05)
        assert scheduler.next(10.05)[0] is None, "too soon: the device rests as long as it ran"
        put(scheduler, 10.3)
        probe, dropped = scheduler.next(10.3)
        assert probe is not None
        assert probe.is_probe
        assert not dropped

    def test_is_back_after_one_probe_that_is_fast(self) -> None:
        scheduler = Scheduler(line_table(1e-3, 4e-3), LATENCY)
        scheduler.open("a")
        largest = scheduler.largest
        spell(scheduler, 10.0, 0.25)
        assert scheduler.lateness("a", 10.3, 0.0, 10.3) > 0
        scheduler.observe(1, 0.005, now=10.3, is_probe=True)
        assert scheduler.lateness("a", 10.3, 0.0, 10.3) == 0
        assert scheduler.largest == pytest.approx(largest, rel=0.2)

    def test_stays_careful_after_a_probe_that_is_slow(self) -> None:
        scheduler = Scheduler(line_table(1e-3, 4e-3), LATENCY)
        scheduler.open("a")
        spell(scheduler, 10.0, 0.25)
        scheduler.observe(1, 0.24, now=10.5, is_probe=True)
        assert scheduler.lateness("a", 10.6, 0.0, 10.6) > 0

    def test_forgets_a_probe_that_was_fast_by_luck(self) -> None:
        scheduler = Scheduler(line_table(1e-3, 4e-3), LATENCY)
        scheduler.open("a")
        spell(scheduler, 10.0, 0.25)
        scheduler.observe(1, 0.005, now=10.5, is_probe=True)
        for _ in range(2):
            scheduler.observe(1, 0.25, now=10.8)
        assert scheduler.lateness("a", 11.0, 0.0, 11.0) > 0

    def test_drops_late_items_as_before_while_batches_run(self) -> None:
        scheduler = Scheduler(line_table(1e-3, 4e-3), LATENCY)
        scheduler.open("a")
        for step in range(100):
            now = 10 + 0.05 * step
            put(scheduler, now - 0.2)
            put(scheduler, now)
            dispatch, dropped = scheduler.next(now)
            assert dispatch is not None
            assert not dispatch.is_probe
            assert [cause for _, cause in dropped] == ["late"]
            scheduler.observe(1, 0.005, now=now + 0.005)


class Model:
    """Takes a time that is set from outside."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.calls = 0

    def __call__(self, items: list[float]) -> list[float]:
        self.calls += 1
        time.sleep(self.seconds * max(items))
        return items


def ask_until(batcher: rb.Batcher, item: float, served: int, within: float = PATIENCE) -> int:
    """Requests one after the other until so many were in time; how many were."""
    until, count = time.monotonic() + within, 0
    while count < served and time.monotonic() < until:
        try:
            count += batcher.submit(item).result(PATIENCE).in_time
        except rb.LateError:
            time.sleep(0.01)
    return count


class TestABatcher:
    def test_serves_again_after_a_slow_spell(self) -> None:
        model = Model(0.002)
        with rb.Batcher(model, 0.2) as batcher:
            assert ask_until(batcher, 1.0, 5) == 5
            later = time.monotonic() + 1000  # so that no probe is due yet, however slow this is
            for _ in range(40):  # more than teach it that nothing fits
                batcher._scheduler.observe(1, 0.5, now=later)
            with pytest.raises(rb.LateError):
                batcher.submit(1.0)
            batcher._scheduler.observe(1, 0.5, now=time.monotonic())
            assert ask_until(batcher, 1.0, 20) == 20

    def test_calibrates_again_after_a_first_item_that_was_unlike_the_others(self) -> None:
        model = Model(0.002)
        with rb.Batcher(model, 0.2, calibrate_on=200.0) as batcher:
            assert batcher.calibration is not None
            assert batcher.largest_batch == 1
            until = time.monotonic() + PATIENCE  # a probe that is slow by chance changes nothing
            while batcher.largest_batch == 1 and time.monotonic() < until:
                assert ask_until(batcher, 1.0, 1) == 1
            assert max(batcher.calibration.samples) > 1
            assert batcher.largest_batch > 1
            assert ask_until(batcher, 1.0, 10) == 10

    def test_tells_that_nothing_is_in_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rightbatch._serve.engine.attainment.LEAST", 0.2)
        model = Model(0.002)
        with rb.Batcher(model, 0.01, calibrate_on=1.0) as batcher:
            assert batcher.attainment.seconds_without_success == 0
            model.seconds = 0.05
            until = time.monotonic() + PATIENCE
            while not batcher.attainment.seconds_without_success and time.monotonic() < until:
                ask_until(batcher, 1.0, 1, 0.05)
            assert batcher.attainment.seconds_without_success > 0
            model.seconds = 0.0
            assert ask_until(batcher, 1.0, 1) == 1
            assert batcher.attainment.seconds_without_success == 0


class TestAttainment:
    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        moment = [100.0]
        monkeypatch.setattr("rightbatch._serve.engine.attainment.time.monotonic", lambda: moment[0])
        return moment

    def test_is_missing_after_some_targets_without_an_item_in_time(self, now: list[float]) -> None:
        attainment = Attainment(0.1)
        attainment.dropped("a", "refused")
        assert attainment.seconds_without_success == 0
        now[0] += LEAST
        attainment.note(False)
        assert attainment.seconds_without_success == LEAST
        attainment.note(True)
        assert attainment.seconds_without_success == 0

    def test_is_not_missing_where_nothing_comes_or_frames_are_replaced(
        self, now: list[float]
    ) -> None:
        attainment = Attainment(0.1)
        attainment.dropped("a", "late")
        for _ in range(10):
            now[0] += LEAST
            attainment.dropped("a", "replaced")
        assert attainment.seconds_without_success == 0

    def test_is_missing_while_a_batch_does_not_end(self, now: list[float]) -> None:
        attainment = Attainment(0.1)
        attainment.batch_began()
        now[0] += LEAST / 2
        assert attainment.seconds_without_success == 0
        now[0] += LEAST
        assert attainment.seconds_without_success == 1.5 * LEAST
        attainment.batch_ended()
        assert attainment.seconds_without_success == 0


class TestAModelThatHangs:
    """Nothing is served, refused or dropped then, so nothing counts as missed by itself."""

    def test_is_seen_by_its_camera_alone(
        self, batcher_of: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rightbatch._serve.engine.attainment.LEAST", 0.1)
        model = Gated()
        batcher = batcher_of(model, latency=0.02)
        batcher.open_stream("camera", contract="freshest")
        batcher.put("camera", "frame", lambda outcome: None)
        assert model.entered.acquire(timeout=PATIENCE)
        wait_for(lambda: batcher.attainment.seconds_without_success)
        assert batcher.attainment.seconds_without_success >= 0.1

    def test_answers_who_asks_at_once(self, batcher_of: Any) -> None:
        model = Gated()
        batcher = batcher_of(model, latency=0.05)
        first = batcher.submit("first")
        assert model.entered.acquire(timeout=PATIENCE)
        accepted, refusal = [], None
        for _ in range(1000):  # the target is over before the last one
            try:
                accepted.append(batcher.submit("next"))
            except rb.LateError as error:
                refusal = error
                break
            time.sleep(0.005)
        assert refusal is not None
        assert refusal.cause == "refused"
        assert refusal.retry_after > 0
        model.go.set()
        assert first.result(PATIENCE).result == ("result", "first")
        wait_for(lambda: all(future.done() for future in accepted))


def test_a_closed_batcher_does_not_wait_for_a_probe() -> None:
    model = Model(0.002)
    batcher = rb.Batcher(model, 0.2, calibrate_on=200.0)
    assert batcher.close(PATIENCE) == 0
    assert not batcher.is_running
